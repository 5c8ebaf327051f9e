"""Log rows: metrics leave their device only when a row is due, in one transfer."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ..state import TrainState
from ..types import Row, RowKind
from .stopwatch import Stopwatch


def fetch(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The metrics as Python floats, sorted by name. One synchronisation for those on an accelerator."""
    names = sorted(metrics)
    away = [name for name in names if metrics[name].device.type != "cpu"]
    values: dict[str, float] = {}
    if away:
        # Not as float64 on the device: some accelerators have none.
        wide = torch.promote_types(torch.float32, max((metrics[name].dtype for name in away), key=lambda d: d.itemsize))
        stacked = torch.stack([metrics[name].detach().to(wide) for name in away]).cpu()
        values = dict(zip(away, stacked.tolist(), strict=True))
    return {name: values[name] if name in values else float(metrics[name]) for name in names}


def make_row(kind: RowKind, state: TrainState, watch: Stopwatch | None = None) -> Row:
    """The row of ``state``'s own iteration: never a mean over a window, so it does not depend on the cadence.

    Only what ``watch`` has observed since it was read last belongs to a window.
    """
    metrics = state.metrics if kind == "train" else state.validation.metrics
    counters, observed = state.counters, {}
    if watch is None:
        values = fetch(metrics)
    else:  # where an accelerator lags behind, this waits for its steps
        values = watch.timed("step", fetch, metrics)
        observed = watch.read(counters.micro_step)
    return Row(kind, counters.iteration, counters.micro_step, state.cursor.epoch, values, time.time(), observed)
