"""Pooling over random regions: torch takes the random numbers as an argument, so they are drawn here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .source import Source, uniform


def _pool(pool: Callable[..., Any], dims: int, source: Source, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if len(args) < 5 and kwargs.get("_random_samples") is None:
        batch = 1 if input.dim() == dims + 1 else input.shape[0]
        shape = (batch, input.shape[-dims - 1], dims)
        kwargs["_random_samples"] = uniform(source.next_key(), shape, input.dtype, input.device)
    return pool(input, *args, **kwargs)


POOLS: dict[Callable[..., Any], Callable[..., Any]] = {
    pool: functools.partial(_pool, pool, dims)
    for pool, dims in (
        (F.fractional_max_pool2d, 2),
        (F.fractional_max_pool2d_with_indices, 2),
        (F.fractional_max_pool3d, 3),
        (F.fractional_max_pool3d_with_indices, 3),
    )
}
