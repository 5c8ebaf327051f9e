"""Plans: which samples make up which batch. Pure arithmetic over orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from .. import random
from ..types import Key
from .order import CustomBatches, Order, epoch_key

ReadBatch: TypeAlias = Callable[[int], list[int]]


class Task(NamedTuple):
    """Everything that decides the bytes of one batch; plain values, so that it travels to a worker as it is."""

    key: tuple[int, int]
    epoch: int
    batch: int
    indices: list[int]


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
        length = self.order.length(self.n)
        whole = length // self.batch_size if self.drop_last else -(-length // self.batch_size)
        return whole if self.limit is None else min(whole, self.limit)

    def open(self, key: Key, epoch: int) -> ReadBatch:
        window, size, length = self.order.open(key, epoch, self.n), self.batch_size, self.order.length(self.n)

        def read(batch: int) -> list[int]:
            start = batch * size
            found: list[int] = window(start, min(start + size, length)).tolist()
            return found

        return read


class GivenBatches(NamedTuple):
    """Batches as a custom order lists them, of any sizes."""

    order: CustomBatches
    n: int
    limit: int | None = None

    @property
    def batches(self) -> int:
        return self.order.batches if self.limit is None else min(self.order.batches, self.limit)

    def open(self, key: Key, epoch: int) -> ReadBatch:
        listed = self.order.open(key, epoch, self.n)

        def read(batch: int) -> list[int]:
            found: list[int] = listed[batch].tolist()
            return found

        return read


Plan: TypeAlias = FixedSize | GivenBatches


def tasks(plan: Plan, key: Key, phase: int, positions: Iterable[tuple[int, int]]) -> Iterator[Task]:
    """The tasks for a sequence of ``(epoch, batch)``; an order is opened when its epoch is first met."""
    first, second = random.fold_in(key, "data").tolist()
    opened: tuple[int, ReadBatch] | None = None
    for epoch, batch in positions:
        if opened is None or opened[0] != epoch:
            opened = epoch, plan.open(epoch_key(key, phase, epoch), epoch)
        yield Task((first, second), epoch, batch, opened[1](batch))
