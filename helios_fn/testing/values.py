"""Two states that differ, leaf by leaf, with both values, also where they look equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import tree

_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NEAR = 16


def differences(left: Any, right: Any, *, most: int = 8) -> list[str]:
    """One line for each leaf that differs: its path, how many elements, the first one on both sides.

    Where these are floats that lie close together the line has their distance in units in the last place, and
    their bit patterns: two NaN, two zeros and two neighbours may look alike.
    """
    found = tree.diff(left, right)
    here, there = dict(tree.items(left)), dict(tree.items(right))
    lines = [f"{each}{_closer(here.get(each.path), there.get(each.path))}" for each in found[:most]]
    return lines + ([f"... and {len(found) - most} more"] if len(found) > most else [])


def _closer(left: Any, right: Any) -> str:
    if isinstance(left, float) and isinstance(right, float):
        left, right = (torch.tensor(side, dtype=torch.float64) for side in (left, right))
    if not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
        return ""
    if left.dtype != right.dtype or left.shape != right.shape or not left.is_floating_point():
        return ""
    word = _WORDS[left.element_size()]
    here, there = (np.frombuffer(tree.tensor_bytes(side), word) for side in (left, right))
    first = int(np.flatnonzero(here != there)[0])
    bits = int(here[first]), int(there[first])
    ulps = abs(_place(bits[0], left.element_size()) - _place(bits[1], left.element_size()))
    if ulps > _NEAR:
        return ""
    return f" ({ulps} units in the last place apart; bits {bits[0]:#x} and {bits[1]:#x})"


def _place(bits: int, size: int) -> int:
    """The place of a float in the order of all floats of its width; both zeros share one."""
    top = 1 << (8 * size - 1)
    return bits if bits < top else top - bits
