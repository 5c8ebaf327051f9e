"""Accelerate with loaders that save their position.

https://huggingface.co/docs/accelerate/usage_guides/checkpoint and the example cited in `accelerate`: with
``use_stateful_dataloader`` the loader's state is part of ``save_state`` and ``load_state``, and nothing is skipped. It
wraps torchdata's, whose documentation has the dataset save its generators (see `stateful`).
"""

from __future__ import annotations

from .. import job
from ..leg import Leg
from .accelerate import loop

TITLE = "Accelerate, StatefulDataLoader"
RESUME = "`load_state`, `use_stateful_dataloader`, `set_seed`, the dataset's generators in the loader's state"


def prepare() -> str:
    """Imports them."""
    import accelerate
    import torchdata.stateful_dataloader  # noqa: F401

    return ""


def train(leg: Leg) -> job.Final:
    """The loop without skipping."""
    return loop(leg, job.StatefulData(), {"use_stateful_dataloader": True})
