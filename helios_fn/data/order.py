"""Orders of samples: pure functions of (key, phase, epoch, position).

An order is opened once per epoch, with a key that belongs to that epoch alone, and then read in
windows. `Shuffled` and `Sequential` can be read from any position in constant time; `CustomOrder` and
`CustomBatches` are replayed from their epoch's start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from .. import random
from ..types import Key
from .permutation import Indices, Window, permutation


@runtime_checkable
class Order(Protocol):
    """In which order an epoch visits the samples of a dataset of ``n`` samples."""

    @property
    def name(self) -> str:
        """What identifies the order in checkpoints."""

    def length(self, n: int) -> int:
        """The number of visits in an epoch."""

    def open(self, key: Key, epoch: int, n: int) -> Window:
        """One epoch's indices, for reading windows of them. ``key`` is the epoch's own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shuffled:
    """Another permutation of all samples in every epoch, readable from any position at once."""

    name = "shuffled"

    def length(self, n: int) -> int:
        """``n``."""
        return n

    def open(self, key: Key, epoch: int, n: int) -> Window:
        """The epoch's permutation."""
        return permutation(key, n)


@dataclasses.dataclass(frozen=True, slots=True)
class Sequential:
    """The samples as they come, the same in every epoch."""

    name = "sequential"

    def length(self, n: int) -> int:
        """``n``."""
        return n

    def open(self, key: Key, epoch: int, n: int) -> Window:
        """The positions themselves."""
        return lambda lo, hi: np.arange(lo, hi, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class CustomOrder:
    """The indices that ``function(key, epoch, n)`` returns, replayed from the epoch's start.

    Attributes:
        function: a pure function of the epoch's own key, the epoch's number and the dataset's length.
            It may leave out samples or repeat them.
        samples: how many indices it returns; default the dataset's length.
        label: identifies the order in checkpoints; default the function's name.

    Example:
        >>> evens = hf.data.CustomOrder(lambda key, epoch, n: range(0, n, 2), samples=5)
        >>> [batch.tolist() for batch in hf.Loader(torch.arange(10), 2, order=evens).epoch(hf.random.key(0))]
        [[0, 2], [4, 6], [8]]
    """

    function: Callable[[Key, int, int], Iterable[int]]
    samples: int | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """What identifies the order in checkpoints."""
        return self.label or f"custom {_name_of(self.function)}"

    def length(self, n: int) -> int:
        """The number of indices in an epoch."""
        return n if self.samples is None else self.samples

    def open(self, key: Key, epoch: int, n: int) -> Window:
        """One epoch's indices.

        Raises:
            ValueError: the function gives another number of indices, or one outside of the dataset.
            TypeError: what it gives are no integers.
        """
        indices = _checked(self.function(key, epoch, n), n, self.name)
        if len(indices) != self.length(n):
            raise ValueError(
                f"the order '{self.name}' gave {len(indices)} indices in epoch {epoch} and {self.length(n)} were "
                "expected: every epoch must have the same length; set CustomOrder(samples=...) to change it"
            )
        return lambda lo, hi: indices[lo:hi]


@dataclasses.dataclass(frozen=True)
class CustomBatches:
    """The batches of indices that ``function(key, epoch, n)`` returns: an order that also decides the batches.

    Attributes:
        function: a pure function as in `CustomOrder` that returns a sequence of batches, each a
            sequence of indices and not empty.
        batches: how many batches it returns.
        label: identifies the order in checkpoints; default the function's name.
    """

    function: Callable[[Key, int, int], Iterable[Iterable[int]]]
    batches: int
    label: str | None = None

    @property
    def name(self) -> str:
        """What identifies the order in checkpoints."""
        return self.label or f"custom {_name_of(self.function)}"

    def open(self, key: Key, epoch: int, n: int) -> list[Indices]:
        """One epoch's batches; raises as `CustomOrder` does."""
        batches = [_checked(batch, n, self.name) for batch in self.function(key, epoch, n)]
        if len(batches) != self.batches:
            raise ValueError(
                f"the order '{self.name}' gave {len(batches)} batches in epoch {epoch} and {self.batches} were "
                "expected: every epoch must have the same number of batches"
            )
        if any(len(batch) == 0 for batch in batches):
            raise ValueError(f"the order '{self.name}' gave an empty batch in epoch {epoch}")
        return batches


def epoch_key(key: Key, phase: int, epoch: int) -> Key:
    """The key that decides the order of one epoch."""
    return random.fold_in(key, "order", phase, epoch)


def window(key: Key, phase: int, epoch: int, n: int, lo: int, hi: int) -> Indices:
    """The indices of the samples at positions ``lo`` to ``hi - 1`` of a shuffled epoch: int64 of shape (hi - lo,).

    Law: over ``0 <= lo < hi <= n`` each of the ``n`` samples stands at exactly one position, and
    windows do not depend on where they are cut.

    Example:
        >>> key = hf.random.key(0)
        >>> [hf.data.window(key, 0, epoch, 8, 0, 8).tolist() for epoch in (0, 1)]
        [[5, 1, 2, 7, 3, 0, 6, 4], [4, 2, 5, 3, 0, 6, 1, 7]]
        >>> hf.data.window(key, 0, 0, 8, 4, 8).tolist()
        [3, 0, 6, 4]
    """
    return permutation(epoch_key(key, phase, epoch), n)(lo, hi)


def _checked(indices: Iterable[Any], n: int, name: str) -> Indices:
    if isinstance(indices, torch.Tensor):
        indices = indices.detach().cpu().numpy()
    found = np.asarray(indices if isinstance(indices, np.ndarray) else [*indices])
    if found.size and (found.ndim != 1 or found.dtype.kind not in "iu"):
        raise TypeError(f"the order '{name}' must give integer indices, got {found.dtype} of shape {found.shape}")
    bad = found[(found < 0) | (found >= n)] if found.size else found
    if bad.size:
        raise ValueError(f"the order '{name}' gave the index {bad[0]}, outside of the dataset's 0 to {n - 1}")
    return found.astype(np.int64)


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__
