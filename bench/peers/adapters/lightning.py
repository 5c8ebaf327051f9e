"""Lightning: the trainer's own checkpoints, with a loader that saves its position.

- https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html: ``trainer.fit(model, ckpt_path=...)``
  restores "the full training"; ``ckpt_path="last"`` takes the newest checkpoint, or starts afresh.
- https://lightning.ai/docs/pytorch/stable/common/checkpointing_intermediate.html: ``every_n_train_steps``,
  ``save_last``.
- https://lightning.ai/docs/pytorch/stable/common/trainer.html#reproducibility: ``seed_everything(seed, workers=True)``,
  ``deterministic=True``.
- The trainer warns of a mid-epoch resume unless the loader has ``state_dict`` and ``load_state_dict``, and names
  torchdata's `StatefulDataLoader`, whose documentation has the dataset save its generators (see `stateful`).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch.nn import functional as F

from ...standin import torchvision
from .. import job
from ..leg import Leg

TITLE = "Lightning, StatefulDataLoader"
RESUME = "`fit(ckpt_path=\"last\")`, `seed_everything(workers=True)`, the loader's state with the dataset's generators"


def prepare() -> str:
    """Imports it."""
    note = torchvision()
    import lightning.pytorch  # noqa: F401
    import torchdata.stateful_dataloader  # noqa: F401

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return note


def train(leg: Leg) -> job.Final:
    """A module and a trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    warnings.simplefilter("ignore")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = job.network()

        def training_step(self, batch: job.Batch, index: int) -> torch.Tensor:
            leg.take(*batch)
            _, x, y = batch
            return F.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> Any:
            optimizer = job.optimizer_of(self)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": job.scheduler_of(optimizer), "interval": "step"},
            }

    pl.seed_everything(job.SEED, workers=True, verbose=False)
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=job.EPOCHS,
        accumulate_grad_batches=job.ACCUMULATION,
        deterministic=True,
        callbacks=[
            ModelCheckpoint(
                leg.root, every_n_train_steps=job.CHECKPOINT_EVERY, save_top_k=-1, save_last=True, verbose=False
            )
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(leg.root),
    )
    loader = StatefulDataLoader(job.StatefulData(), job.BATCH_SIZE, shuffle=True, num_workers=leg.workers)
    trainer.fit(module, loader, ckpt_path="last", weights_only=False)
    return job.final_of(module.network, trainer.optimizers[0])
