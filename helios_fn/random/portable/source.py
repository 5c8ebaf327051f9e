"""What the stand-ins have in common: where keys come from, and the values that they draw."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from ...types import Key
from .. import draws


class Source(Protocol):
    """Hands out keys, each to one draw."""

    def next_key(self) -> Key:
        """A key that nobody has drawn from."""


_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_ORDINARY = (None, False, torch.strided, torch.preserve_format, torch.contiguous_format)


def uniform(key: Key, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Uniform on [0, 1); of complex types, both parts are."""
    if dtype in _REAL:
        return torch.view_as_complex(draws.uniform(key, (*shape, 2), dtype=_REAL[dtype], device=device))
    return draws.uniform(key, shape, dtype=dtype, device=device)


def normal(key: Key, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Normal with mean 0 and variance 1; of complex types, the variances of both parts add up to 1."""
    if dtype in _REAL:
        parts = draws.normal(key, (*shape, 2), std=math.sqrt(0.5), dtype=_REAL[dtype], device=device)
        return torch.view_as_complex(parts)
    return draws.normal(key, shape, dtype=dtype, device=device)


def exponential(key: Key, shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """Exponential with rate 1, never 0: its logarithm is finite."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    values = -torch.log1p(-draws.uniform(key, shape, dtype=precise, device=device))
    return values.clamp_min(torch.finfo(precise).eps / 2).to(dtype)


def integers(key: Key, shape: Any, low: int, high: int, device: Any) -> torch.Tensor:
    """Integers (int64) from [low, high); for more than 2**32 different ones, as torch, 63 bits modulo their number."""
    span = high - low
    if span <= 1 << 32:
        return draws.randint(key, shape, low=low, high=high, device=device)
    words = draws.bits(key, shape, width=64, device=device)
    if span > 1 << 63:
        return words  # the whole of int64 is all that is asked for in practice
    positive = words & 0x7FFFFFFFFFFFFFFF
    return (positive if span == 1 << 63 else positive % span) + low


def write(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Overwrite a tensor, as torch's in-place samplers do, and return it."""
    return tensor.copy_(values)


def check_options(function: str, options: dict[str, Any]) -> None:
    """Refuse options whose effect a portable draw does not have.

    Raises:
        TypeError: one is set to something out of the ordinary.
    """
    for name, value in options.items():
        if name != "generator" and not any(value is ordinary for ordinary in _ORDINARY):
            raise TypeError(f"{function}({name}={value!r}) has no portable counterpart: leave {name} out")
