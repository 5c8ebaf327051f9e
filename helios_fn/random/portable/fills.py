"""The methods that overwrite a tensor with random values: ``Tensor.normal_`` and its like."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import draws
from .source import Source, exponential, integers, normal, uniform, write

_FLOAT_INTEGERS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def uniform_(
    source: Source, tensor: torch.Tensor, *bounds: float, generator: Any = None, **named: float
) -> torch.Tensor:
    """``Tensor.uniform_(from=0, to=1)``."""
    low, high = (*bounds, *(0.0, 1.0)[len(bounds) :])
    low, high = named.get("from", low), named.get("to", high)
    if low < high and tensor.is_floating_point():
        drawn = draws.uniform(
            source.next_key(), tensor.shape, low=low, high=high, dtype=tensor.dtype, device=tensor.device
        )
        return write(tensor, drawn)
    return write(tensor, uniform(source.next_key(), tensor.shape, tensor.dtype, tensor.device) * (high - low) + low)


def normal_(
    source: Source, tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None
) -> torch.Tensor:
    """``Tensor.normal_``."""
    return write(tensor, normal(source.next_key(), tensor.shape, tensor.dtype, tensor.device) * std + mean)


def log_normal_(
    source: Source, tensor: torch.Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Any = None
) -> torch.Tensor:
    """``Tensor.log_normal_``."""
    values = normal(source.next_key(), tensor.shape, tensor.dtype, tensor.device) * std + mean
    return write(tensor, values.exp())


def bernoulli_(
    source: Source, tensor: torch.Tensor, p: float | torch.Tensor = 0.5, *, generator: Any = None
) -> torch.Tensor:
    """``Tensor.bernoulli_``."""
    chances = p.detach() if isinstance(p, torch.Tensor) else p
    drawn = draws.bernoulli(source.next_key(), tensor.shape, p=chances, device=tensor.device)
    return write(tensor, drawn.to(tensor.dtype))


def exponential_(source: Source, tensor: torch.Tensor, lambd: float = 1.0, *, generator: Any = None) -> torch.Tensor:
    """``Tensor.exponential_``."""
    return write(tensor, exponential(source.next_key(), tensor.shape, tensor.dtype, tensor.device) / lambd)


def geometric_(source: Source, tensor: torch.Tensor, p: float, *, generator: Any = None) -> torch.Tensor:
    """``Tensor.geometric_``: the number of the first success, from 1."""
    waited = exponential(source.next_key(), tensor.shape, torch.float64, tensor.device)
    rate = math.inf if p == 1 else -math.log1p(-p)
    return write(tensor, (waited / rate).ceil().clamp_min(1).to(tensor.dtype))


def cauchy_(
    source: Source, tensor: torch.Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None
) -> torch.Tensor:
    """``Tensor.cauchy_``."""
    turns = uniform(source.next_key(), tensor.shape, tensor.dtype, tensor.device)
    return write(tensor, torch.tan((turns - 0.5) * math.pi) * sigma + median)


def random_(
    source: Source, tensor: torch.Tensor, *bounds: int | None, generator: Any = None, **named: int | None
) -> torch.Tensor:
    """``Tensor.random_(from=0, to=None)``; ``random_(to)`` has one bound. By default the largest range of the type."""
    low, high = (0, *bounds) if len(bounds) == 1 and "to" not in named else (*bounds, *(0, None)[len(bounds) :])
    first, beyond = named.get("from", low) or 0, named.get("to", high)
    if beyond is None:
        beyond = _beyond(tensor.dtype)
    return write(tensor, integers(source.next_key(), tensor.shape, first, beyond, tensor.device).to(tensor.dtype))


def _beyond(dtype: torch.dtype) -> int:
    """One more than the largest integer up to which all are exact."""
    if dtype == torch.bool:
        return 2
    if dtype in _FLOAT_INTEGERS:
        return (1 << _FLOAT_INTEGERS[dtype]) + 1
    return int(torch.iinfo(dtype).max) + 1
