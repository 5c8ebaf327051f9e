"""Accelerate with a loader that saves its position.

https://huggingface.co/docs/accelerate/usage_guides/checkpoint and the example cited in `accelerate`: with
``use_stateful_dataloader`` the loader's state is part of ``save_state`` and ``load_state``, and nothing is skipped. It
wraps torchdata's, whose documentation has the dataset save its generators (see `stateful`). Of the ways to make the
loader, the one that is exact most often was taken: torchdata's own, with a seeded generator (PyTorch's notes on
randomness). Without the generator the order is right with no workers, too, but no final state is.
"""

from __future__ import annotations

import torch

from .. import job
from ..leg import Leg
from .accelerate import loop

TITLE = "Accelerate, StatefulDataLoader"
RESUME = "`load_state`, `use_stateful_dataloader`, `set_seed`, the loader's state with the dataset's generators"


def prepare() -> str:
    """Imports them."""
    import accelerate  # noqa: F401
    import torchdata.stateful_dataloader  # noqa: F401

    return ""


def train(leg: Leg) -> job.Final:
    """The loop without skipping."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(
        job.StatefulData(),
        job.BATCH_SIZE,
        shuffle=True,
        num_workers=leg.workers,
        generator=torch.Generator().manual_seed(job.SEED),
    )
    return loop(leg, loader, {"use_stateful_dataloader": True}, skips=False)
