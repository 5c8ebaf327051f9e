"""Ignite: its engine that is made for this, with its checkpoint handler.

- https://docs.pytorch.org/ignite/engine.html#resuming-the-training: the trainer, model, optimiser and scheduler go
  into one `Checkpoint`; ``Checkpoint.load_objects`` restores them, ``run`` goes on.
- https://docs.pytorch.org/ignite/generated/ignite.engine.deterministic.DeterministicEngine.html: seeds each epoch,
  rewinds the batch sampler to the iteration, restores the generators' states in the middle of an epoch.
- https://docs.pytorch.org/ignite/generated/ignite.handlers.checkpoint.Checkpoint.html and ``DiskSaver``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .. import job
from ..leg import Leg

TITLE = "Ignite, DeterministicEngine"
RESUME = "`Checkpoint` with the trainer in it, `Checkpoint.load_objects`, `DeterministicEngine`"


def prepare() -> str:
    """Imports it."""
    import ignite.engine.deterministic
    import ignite.handlers  # noqa: F401

    return ""


def train(leg: Leg) -> job.Final:
    """An engine with its checkpoint handler."""
    from ignite.engine import Events
    from ignite.engine.deterministic import DeterministicEngine
    from ignite.handlers import Checkpoint, DiskSaver
    from ignite.utils import manual_seed

    manual_seed(job.SEED)
    module = job.network()
    optimizer = job.optimizer_of(module)
    scheduler = job.scheduler_of(optimizer)

    def process(engine: Any, batch: job.Batch) -> None:
        leg.take(*batch)
        _, x, y = batch
        module.train()
        (F.cross_entropy(module(x), y) / job.ACCUMULATION).backward()
        if engine.state.iteration % job.ACCUMULATION == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    trainer = DeterministicEngine(process)
    objects = {"trainer": trainer, "model": module, "optimizer": optimizer, "lr_scheduler": scheduler}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=job.ACCUMULATION * job.CHECKPOINT_EVERY),
        Checkpoint(
            objects,
            DiskSaver(str(leg.root), require_empty=False),
            n_saved=None,
            global_step_transform=lambda engine, _: engine.state.iteration,
        ),
    )
    saved = sorted(leg.root.glob("*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))
    if saved:
        Checkpoint.load_objects(objects, torch.load(saved[-1], weights_only=False))
    loader = DataLoader(job.Data(), job.BATCH_SIZE, shuffle=True, num_workers=leg.workers)
    trainer.run(loader, max_epochs=job.EPOCHS)
    return job.final_of(module, optimizer)
