"""Helios 2: its trainer in the iteration unit, with its resumable sampler and its checkpoints.

https://helios-ml.readthedocs.io, and the docstrings of `helios.trainer.Trainer` and `helios.data.samplers`: where
``chkpt_root`` holds checkpoints, ``fit`` resumes from the last one; generators are seeded, saved and restored by the
trainer; samplers are resumable and chosen by ``shuffle``; model, optimiser and scheduler go into ``user_state_dict``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ...standin import torchvision
from .. import job
from ..leg import Leg

TITLE = "Helios"
RESUME = "`Trainer(chkpt_root=...).fit` again, its resumable random sampler"
EMPTY = 3  # epochs in a row


class EndlessError(Exception):
    """Waiting for the timeout would show no more."""


def prepare() -> str:
    """Imports it."""
    note = torchvision()
    import helios.data
    import helios.model
    import helios.trainer  # noqa: F401

    return note


def train(leg: Leg) -> job.Final:
    """A model, a data module and a trainer."""
    from helios.data import DataLoaderParams, DataModule
    from helios.model import Model
    from helios.trainer import Trainer

    class Samples(DataModule):
        def setup(self) -> None:
            params = DataLoaderParams(
                random_seed=job.SEED, batch_size=job.BATCH_SIZE, shuffle=True, num_workers=leg.workers
            )
            self._add_train_phase(job.Data(), params)

    class Network(Model):
        def setup(self, for_inference: bool = False) -> None:
            self.network = job.network()
            self.optimizer = job.optimizer_of(self.network)
            self.scheduler = job.scheduler_of(self.optimizer)
            self.empty = 0

        def train(self) -> None:
            self.network.train()

        def user_state_dict(self) -> dict[str, Any]:
            kept: dict[str, Any] = {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
            return {name: thing.state_dict() for name, thing in kept.items()}

        def load_user_state_dict(self, state_dict: dict[str, Any], for_inference: bool) -> None:
            for name, kept in state_dict.items():
                getattr(self, name).load_state_dict(kept)

        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.empty += 1
            if self.empty > EMPTY:
                raise EndlessError("epoch after epoch without a batch")

        def train_step(self, batch: job.Batch, state: Any) -> None:
            leg.take(*batch)
            self.empty = 0
            _, x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            (loss / job.ACCUMULATION).backward()
            if state.global_iteration % job.ACCUMULATION == 0:
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self._loss_items["loss"] = loss.detach()

    trainer = Trainer(
        run_name="job",
        train_unit="iteration",
        total_steps=job.ITERATIONS,
        accumulation_steps=job.ACCUMULATION,
        chkpt_frequency=job.CHECKPOINT_EVERY,
        chkpt_root=leg.root,
        random_seed=job.SEED,
        enable_deterministic=True,
        use_cpu=True,
        print_banner=False,
    )
    model = Network("job")
    trainer.train_exceptions = [Exception]  # to be raised, not logged
    trainer.fit(model, Samples())
    torch.use_deterministic_algorithms(False)
    return job.final_of(model.network, model.optimizer)
