"""A loop written by hand, as careful as the PyTorch documentation lets one be.

- https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html: model, optimiser and
  epoch go into one file; others are to be added as needed.
- https://docs.pytorch.org/docs/stable/notes/randomness.html: seeds of torch and Python; a `DataLoader` draws its order
  and its workers' seeds from its ``generator``; workers' seeds follow from it.
- https://docs.pytorch.org/docs/stable/data.html: a loader has no position, so that a resumed epoch is read from its
  start and what was consumed is thrown away.

What is added to the recipe: the scheduler, the batch within the epoch, and the states of the generators at the epoch's
start (with which the batches thrown away are drawn) and at the checkpoint.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .. import job
from ..leg import Leg

TITLE = "PyTorch by hand"
RESUME = "general checkpoint, generators' states, the epoch replayed up to the position"


def prepare() -> str:
    """Nothing besides torch."""
    return ""


def generators() -> dict[str, Any]:
    """The states of all that the job draws from in this process."""
    return {"torch": torch.get_rng_state(), "random": random.getstate()}


def restore(states: dict[str, Any]) -> None:
    """Undo what was drawn since."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])


def save(leg: Leg, kept: dict[str, Any]) -> None:
    """Replace the checkpoint in one go."""
    torch.save(kept, leg.root / "new.pt")
    os.replace(leg.root / "new.pt", leg.root / "checkpoint.pt")


def train(leg: Leg) -> job.Final:
    """The loop."""
    torch.manual_seed(job.SEED)
    random.seed(job.SEED)
    module = job.network()
    optimizer = job.optimizer_of(module)
    scheduler = job.scheduler_of(optimizer)
    order = torch.Generator()
    loader = DataLoader(job.Data(), job.BATCH_SIZE, shuffle=True, num_workers=leg.workers, generator=order)
    start, done, at_start, at_checkpoint = 0, 0, generators(), None
    if (leg.root / "checkpoint.pt").exists():
        kept = torch.load(leg.root / "checkpoint.pt", weights_only=False)
        module.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        scheduler.load_state_dict(kept["scheduler"])
        start, done, at_start, at_checkpoint = kept["epoch"], kept["batch"], kept["at_start"], kept["at_checkpoint"]
        restore(at_start)
    for epoch in range(start, job.EPOCHS):
        order.manual_seed(job.SEED + epoch)
        at_start = generators()
        batches = iter(loader)
        for _ in itertools.islice(batches, done):
            pass
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
                states = {"at_start": at_start, "at_checkpoint": generators()}
                trained: dict[str, Any] = {"model": module, "optimizer": optimizer, "scheduler": scheduler}
                dicts = {name: thing.state_dict() for name, thing in trained.items()}
                save(leg, {**dicts, **states, "epoch": epoch, "batch": index})
        done, at_checkpoint = 0, None
    return job.final_of(module, optimizer)
