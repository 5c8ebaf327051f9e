"""helios_fn: the same line again (README, "Quick start"). Everything that is on by default stays on."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .. import job
from ..leg import Leg

TITLE = "helios_fn"
RESUME = "the same line again"


def prepare() -> str:
    """Imports it."""
    import helios_fn  # noqa: F401

    return ""


def train(leg: Leg, *, async_save: bool = True) -> job.Final:
    """The job in functional form."""
    import helios_fn as hf

    model, params, buffers = hf.functional(job.network, seed=job.SEED)

    def loss_fn(params: Any, buffers: Any, batch: job.Batch, key: Any) -> tuple[torch.Tensor, Any]:
        _, x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    optimizer = hf.optim.adamw(
        hf.schedules.warmup_cosine(job.LEARNING_RATE, warmup_steps=job.WARMUP, total_steps=job.ITERATIONS),
        weight_decay=0.01,
    )
    step = hf.make_step(loss_fn, optimizer)

    def watched(state: hf.TrainState, batch: Any) -> hf.TrainState:
        for item in batch.items:
            leg.take(*item)
        return step(state, batch)

    result = hf.run(
        watched,
        hf.init_state(params, optimizer, buffers=buffers, seed=job.SEED),
        hf.Loader(job.Data(), job.BATCH_SIZE, shuffle=True, workers=leg.workers),
        hf.RunConfig(
            unit="iteration",
            total=job.ITERATIONS,
            accumulation_steps=job.ACCUMULATION,
            checkpoint_every=job.CHECKPOINT_EVERY,
            async_save=async_save,
            root=leg.root,
            progress=False,
        ),
    )
    state = result.state
    return {
        name: {path: torch.as_tensor(leaf) for path, leaf in hf.tree.items(part)}
        for name, part in {"parameters": state.params, "buffers": state.buffers, "moments": state.opt_state}.items()
    }
