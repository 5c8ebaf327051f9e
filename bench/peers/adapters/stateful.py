"""A loop by hand with torchdata's `StatefulDataLoader`, which saves its position.

https://docs.pytorch.org/data/0.11/stateful_dataloader_tutorial.html: ``loader.state_dict()`` goes into the checkpoint;
"if your dataset has worker-specific state (eg RNG transform state) you can add state_dict / load_state_dict methods to
your dataset", which `job.StatefulData` has. The rest is as in `by_hand`, and nothing is replayed.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn import functional as F

from .. import job
from ..leg import Leg
from .by_hand import generators, restore, save

TITLE = "PyTorch by hand, StatefulDataLoader"
RESUME = "general checkpoint, generators' states, the loader's state with the dataset's generators"


def prepare() -> str:
    """Imports it."""
    import torchdata.stateful_dataloader  # noqa: F401

    return ""


def train(leg: Leg) -> job.Final:
    """The loop."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.manual_seed(job.SEED)
    random.seed(job.SEED)
    module = job.network()
    optimizer = job.optimizer_of(module)
    scheduler = job.scheduler_of(optimizer)
    loader = StatefulDataLoader(job.StatefulData(), job.BATCH_SIZE, shuffle=True, num_workers=leg.workers)
    start, done, at_checkpoint = 0, 0, None
    if (leg.root / "checkpoint.pt").exists():
        kept = torch.load(leg.root / "checkpoint.pt", weights_only=False)
        module.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        scheduler.load_state_dict(kept["scheduler"])
        loader.load_state_dict(kept["loader"])
        start, done, at_checkpoint = kept["epoch"], kept["batch"], kept["at_checkpoint"]
    for epoch in range(start, job.EPOCHS):
        batches = iter(loader)
        if at_checkpoint is not None:
            restore(at_checkpoint)
        for index, (ids, x, y) in enumerate(batches, start=done + 1):
            leg.take(ids, x, y)
            (F.cross_entropy(module(x), y) / job.ACCUMULATION).backward()
            if index % job.ACCUMULATION == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if index % (job.ACCUMULATION * job.CHECKPOINT_EVERY) == 0:
                trained: dict[str, Any] = {
                    "model": module,
                    "optimizer": optimizer,
                    "scheduler": scheduler,
                    "loader": loader,
                }
                dicts = {name: thing.state_dict() for name, thing in trained.items()}
                save(leg, {**dicts, "at_checkpoint": generators(), "epoch": epoch, "batch": index})
        done, at_checkpoint = 0, None
    return job.final_of(module, optimizer)
