"""Log rows: metrics leave the device only when a row is due, all of them in one transfer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

import torch

from ..state import TrainState
from ..types import Row


def fetch(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The metrics as Python floats, sorted by name. One synchronisation for those on an accelerator."""
    names = sorted(metrics)
    if all(metrics[name].device.type == "cpu" for name in names):
        return {name: float(metrics[name]) for name in names}
    values = torch.stack([metrics[name].detach().to(torch.float64) for name in names]).tolist()
    return dict(zip(names, values, strict=True))


def make_row(kind: Literal["train", "validation"], state: TrainState) -> Row:
    """The row of ``state``'s own iteration: never a mean over a window, so it does not depend on the cadence."""
    metrics = state.metrics if kind == "train" else state.validation.metrics
    counters = state.counters
    return Row(kind, counters.iteration, counters.micro_step, state.cursor.epoch, fetch(metrics), time.time())
