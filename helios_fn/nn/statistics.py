"""The statistics of batch norms, measured anew as plain means over batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .functional import Buffers, Functional


class Measuring(NamedTuple):
    """A model whose batch norms take the mean over all batches that they see, and the buffers to begin with."""

    model: Functional
    buffers: Buffers


def measuring(model: Functional, buffers: Buffers | None) -> Measuring | None:
    """`Measuring` for ``model``; ``None`` if it has no batch norm in train mode that keeps statistics."""
    chosen: list[str] = []

    def cumulative(module: nn.Module) -> None:
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm) and part.training and part.track_running_stats:
                part.momentum = None  # torch's word for the cumulative mean
                chosen.append(f"{name}." if name else "")

    new, start = model.remade(cumulative), dict(buffers or {})
    for prefix in chosen:
        for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            start[prefix + name] = torch.full_like(start[prefix + name], value)
    return Measuring(new, start) if chosen else None
