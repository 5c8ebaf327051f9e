"""How far two tensors of one dtype and shape are apart, in several measures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from ..tree import tensor_bytes

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_IEEE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Distance(NamedTuple):
    """Differences between tensors, over the elements whose bits differ.

    Attributes:
        differing: how many these are; all else is ``None`` or 0 where there are none.
        first: the index of the first one.
        worst: the index of the one with the largest relative difference, NaN being the largest of all.
        absolute: the largest ``|a - b|``; NaN if there is one on either side; ``None`` for dtypes that
            cannot be computed with.
        relative: the largest ``|a - b| / max(|a|, |b|)``, likewise.
        ulps: the largest number of floats from one to the other, plus one; ``None`` for other dtypes and NaN.
    """

    differing: int
    first: tuple[int, ...] = ()
    worst: tuple[int, ...] = ()
    absolute: float | None = None
    relative: float | None = None
    ulps: int | None = None


def distance(left: torch.Tensor, right: torch.Tensor) -> Distance:
    """Compare two dense tensors of one dtype and shape, bit by bit and by value."""
    differing = np.flatnonzero((_rows(left) != _rows(right)).any(axis=1))
    if not len(differing):
        return Distance(0)
    chosen = torch.from_numpy(differing)
    here, there = (side.detach().cpu().reshape(-1)[chosen] for side in (left, right))

    def index(number: int) -> tuple[int, ...]:
        return tuple(int(part) for part in np.unravel_index(differing[number], tuple(left.shape)))

    try:
        absolute, relative = _differences(here, there)
    except (RuntimeError, NotImplementedError, TypeError):  # torch cannot compute with all dtypes
        return Distance(len(differing), index(0), index(0))
    worst = int(np.argmax(np.where(np.isnan(relative), np.inf, relative)))
    return Distance(
        len(differing), index(0), index(worst), float(absolute.max()), float(relative.max()), _ulps(here, there)
    )


def _rows(tensor: torch.Tensor) -> Any:
    return np.frombuffer(tensor_bytes(tensor), np.uint8).reshape(-1, tensor.element_size())


def _differences(left: torch.Tensor, right: torch.Tensor) -> tuple[Any, Any]:
    if left.is_complex():
        here, there = (side.to(torch.complex128).numpy() for side in (left, right))
    elif left.is_floating_point():
        here, there = (side.to(torch.float64).numpy() for side in (left, right))
    else:
        # Whole numbers may differ by more than any signed type holds: their difference wraps to the right one.
        here, there = left.numpy(), right.numpy()
        larger, smaller = np.maximum(here, there).astype(np.uint64), np.minimum(here, there).astype(np.uint64)
        absolute = (larger - smaller).astype(np.float64)
        scale = np.maximum(np.abs(here.astype(np.float64)), np.abs(there.astype(np.float64)))
        return absolute, absolute / scale
    with np.errstate(all="ignore"):
        absolute = np.abs(here - there)
        scale = np.maximum(np.abs(here), np.abs(there))
        relative = np.where(scale == 0, 0.0, absolute / scale)
    return absolute, np.where(np.isinf(scale) & ~np.isnan(absolute), np.inf, relative)


def _ulps(left: torch.Tensor, right: torch.Tensor) -> int | None:
    if left.is_complex():
        left, right = (torch.view_as_real(side).reshape(-1) for side in (left, right))
    if left.dtype not in _IEEE:
        return None
    numbers = (~(left.isnan() | right.isnan())).numpy()
    if not numbers.any():
        return None
    here, there = (_places(side)[numbers] for side in (left, right))
    return int((np.maximum(here, there) - np.minimum(here, there)).max())


def _places(tensor: torch.Tensor) -> Any:
    """Each float's place in the order of all floats of its dtype; both zeros share one."""
    word = _WORDS[tensor.element_size()]
    bits = np.frombuffer(tensor_bytes(tensor), word).astype(np.uint64)
    top = np.uint64(1 << (8 * tensor.element_size() - 1))
    return np.where(bits < top, bits + top, top - (bits - top))
