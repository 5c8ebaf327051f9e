"""Plans: which samples make up which batch. Pure arithmetic over orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import random
from ..types import Key
from .order import CustomBatches, CustomOrder, Order, Sequential, Shuffled, epoch_key
from .permutation import Indices

ReadBatch: TypeAlias = Callable[[int], Indices]


class Task(NamedTuple):
    """Everything that decides the bytes of one batch; plain values, so that it travels to a worker as it is."""

    key: tuple[int, int]
    epoch: int
    batch: int
    indices: Indices

    def __reduce__(self) -> tuple[Any, ...]:
        # As few parts as possible: a task is pickled for every batch, and an array takes longer than its bytes.
        return _task, (*self.key, self.epoch, self.batch, self.indices.tobytes())


def _task(first: int, second: int, epoch: int, batch: int, indices: bytes) -> Task:
    return Task((first, second), epoch, batch, np.frombuffer(bytearray(indices), np.int64))  # writable, for torch


class FixedSize(NamedTuple):
    """Batches of ``batch_size`` consecutive positions of an order over ``n`` samples.

    The ragged last batch is shorter, or left out with ``drop_last``. ``limit`` keeps the first batches.
    """

    order: Order
    n: int
    batch_size: int
    drop_last: bool = False
    limit: int | None = None

    @property
    def batches(self) -> int:
        """The number of batches in an epoch."""
        length = self.order.length(self.n)
        whole = length // self.batch_size if self.drop_last else -(-length // self.batch_size)
        return whole if self.limit is None else min(whole, self.limit)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        return min(self.batches * self.batch_size, self.order.length(self.n))

    def open(self, key: Key, epoch: int) -> ReadBatch:
        """One epoch, for reading the indices of its batches."""
        window, size, length = self.order.open(key, epoch, self.n), self.batch_size, self.order.length(self.n)

        def read(batch: int) -> Indices:
            start = batch * size
            return window(start, min(start + size, length))

        return read


class GivenBatches(NamedTuple):
    """Batches as a custom order lists them, of any sizes."""

    order: CustomBatches
    n: int
    limit: int | None = None

    @property
    def batches(self) -> int:
        """The number of batches in an epoch."""
        return self.order.batches if self.limit is None else min(self.order.batches, self.limit)

    @property
    def samples(self) -> None:
        """Unknown: the batches may have any sizes."""
        return None

    def open(self, key: Key, epoch: int) -> ReadBatch:
        """One epoch, for reading the indices of its batches."""
        return self.order.open(key, epoch, self.n).__getitem__


Plan: TypeAlias = FixedSize | GivenBatches


def make_plan(
    n: int,
    batch_size: int | None,
    *,
    shuffle: bool | None = None,
    order: Any = None,
    drop_last: bool = False,
    limit: float | None = None,
) -> Plan:
    """The plan that a loader's arguments ask for.

    Raises:
        ValueError: a value is out of range, arguments contradict each other, or an epoch has no batch.
        TypeError: ``order`` is no order.
    """
    chosen = _order(shuffle, order)
    if isinstance(chosen, CustomBatches):
        if batch_size is not None or drop_last:
            raise ValueError("the order gives whole batches: leave drop_last out and set batch_size=None")
        given = GivenBatches(chosen, n)
        return given._replace(limit=None if limit is None else portion(limit, given.batches))
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    fixed = FixedSize(chosen, n, batch_size, bool(drop_last))
    if fixed.batches < 1:
        raise ValueError(
            f"not one batch in an epoch: the order '{chosen.name}' visits {chosen.length(n)} samples, a batch takes "
            f"{batch_size} and drop_last={drop_last}; use a smaller batch_size or drop_last=False"
        )
    return fixed._replace(limit=None if limit is None else portion(limit, fixed.batches))


def _order(shuffle: bool | None, order: Any) -> Order | CustomBatches:
    if order is None:
        return Sequential() if shuffle is False else Shuffled()
    if shuffle is not None:
        raise ValueError(f"shuffle={shuffle} and order={order!r} contradict each other: give one of them")
    if isinstance(order, Order | CustomBatches) and not isinstance(order, type):
        return order
    if callable(order) and not isinstance(order, type):
        return CustomOrder(order)
    raise TypeError(f"order must be an Order or a function (key, epoch, n) -> indices, got {order!r}")


def portion(limit: float, batches: int) -> int:
    """How many of ``batches`` a limit leaves: that many, or a float's fraction of them; at least one, at most all.

    Raises:
        ValueError: it is neither an integer of at least 1 nor a fraction in (0, 1].
    """
    if type(limit) is int and limit >= 1:
        return min(limit, batches)
    if type(limit) is float and 0.0 < limit <= 1.0:
        return max(1, int(limit * batches))
    raise ValueError(
        f"the number of batches of an epoch must be an integer of at least 1 or a fraction in (0, 1], got {limit!r}"
    )


def tasks(plan: Plan, key: Key, phase: int, positions: Iterable[tuple[int, int]]) -> Iterator[Task]:
    """The tasks for a sequence of ``(epoch, batch)``; an order is opened when its epoch is first met."""
    first, second = random.fold_in(key, "data").tolist()  # signed, as int64 tensors take them
    opened: tuple[int, ReadBatch] | None = None
    for epoch, batch in positions:
        if opened is None or opened[0] != epoch:
            opened = epoch, plan.open(epoch_key(key, phase, epoch), epoch)
        yield Task((first, second), epoch, batch, opened[1](batch))
