"""Batches as sets of samples: how many there are, some of them, several together, in another precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import tree


def rows(batch: Any) -> int:
    """How many samples a batch has: the length of all its leaves.

    Raises:
        ValueError: they differ, or a leaf has none.
    """
    lengths = {path: len(leaf) if _is_array(leaf) else None for path, leaf in tree.items(batch)}
    if not lengths or None in lengths.values() or len({*lengths.values()}) > 1:
        odd = next((path for path, length in lengths.items() if length is None), "")
        what = f"leaf {odd!r} has no first dimension" if odd or None in lengths.values() else f"lengths are {lengths}"
        raise ValueError(f"micro-batches cannot be joined along their first dimension: {what}. Hand over join=")
    return int(next(iter(lengths.values())))  # type: ignore[arg-type]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | np.ndarray) and leaf.ndim > 0


def cut(batch: Any, count: int) -> Any:
    """The first ``count`` samples."""
    return tree.map(lambda leaf: leaf[:count], batch)


def joined(items: Sequence[Any]) -> Any:
    """One batch of all samples of several, in order."""
    for item in items:
        rows(item)
    return tree.map(lambda *parts: _concatenated(parts), *items)


def _concatenated(parts: Sequence[Any]) -> Any:
    return torch.cat([*parts]) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)


def widened(values: Any) -> Any:
    """A tree with its floating tensors in float64."""
    return tree.map(lambda leaf: leaf.double() if _is_float(leaf) else leaf, values)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
