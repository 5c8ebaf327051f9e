"""Feeds: open readers of a loader, and the one place where its worker processes are kept."""

from __future__ import annotations

import abc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .. import random, tree
from ..schedule import Assignment
from ..types import Delivery
from .plan import Task
from .pool import Pool, PoolOptions
from .sampling import Reader

CLOSED = "this feed is closed: open its source again, at the cursor of the last delivery"
FAILED = "this feed failed before and cannot go on: open its source again, at the cursor of the last delivery"
REPLACED = (
    "this feed ended because its loader was opened again, and a loader feeds one reader at a time: "
    "give each reader a loader of its own, such as loader.replace()"
)


class Engine:
    """The part of a loader that is not a value: its workers, and the feed that has them now."""

    def __init__(self, reader: Reader, options: PoolOptions) -> None:
        self._reader = reader
        self._pool = Pool(reader, options) if options.workers else None
        self._pin = options.pin_memory
        self._feed: weakref.ref[LoaderFeed] | None = None

    def start(self, assignments: Iterable[Assignment], tasks: Iterator[Task], owner: Any) -> LoaderFeed:
        """A feed of the assignments, whose batches are those of the tasks. Ends the feed before it."""
        self._end_feed(REPLACED)
        batches = self._read_here(tasks) if self._pool is None else self._pool.stream(tasks)
        feed = LoaderFeed(assignments, batches, owner)
        self._feed = weakref.ref(feed)
        return feed

    def close(self) -> None:
        """End the feed and stop the workers; starting again starts new ones."""
        self._end_feed(CLOSED)
        if self._pool is not None:
            self._pool.close()

    def _end_feed(self, reason: str) -> None:
        feed = self._feed() if self._feed is not None else None
        if feed is not None:
            feed.end(reason)

    def _read_here(self, tasks: Iterator[Task]) -> Iterator[Any]:
        batches = map(self._read_seeded if self._reader.seeds_globals else self._reader.read, tasks)
        pin = self._pin and torch.cuda.is_available()
        return (tree.map(_pinned, batch) for batch in batches) if pin else batches

    def _read_seeded(self, task: Task) -> Any:
        with random.preserved_globals():
            return self._reader.read(task)


class ReadingFeed(abc.ABC):
    """A feed (see `helios_fn.types.Feed`) that ends once, after which reading on says why."""

    def __init__(self) -> None:
        self._ended: str | None = None

    def __iter__(self) -> Iterator[Delivery]:
        return self

    def __next__(self) -> Delivery:
        if self._ended is not None:
            raise RuntimeError(self._ended)
        try:
            delivery = self._deliver()
        except BaseException:
            # Part of the iteration may be gone: going on would skip data without a word.
            self.end(FAILED)
            raise
        if delivery is None:
            raise StopIteration
        return delivery

    def close(self) -> None:
        """End the feed; its source can be opened again."""
        self.end(CLOSED)

    def end(self, reason: str) -> None:
        """End the feed; reading on raises with the reason."""
        if self._ended is None:
            self._ended = reason
            self._release()

    @abc.abstractmethod
    def _deliver(self) -> Delivery | None:
        """The next delivery; ``None`` where there are no more."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Drop what reading needed."""


class LoaderFeed(ReadingFeed):
    """The deliveries of a loader, one per iteration."""

    def __init__(self, assignments: Iterable[Assignment], batches: Iterator[Any], owner: Any) -> None:
        super().__init__()
        self._assignments = iter(assignments)
        self._batches = batches
        self._owner = owner  # a loader that nobody holds stops its workers

    def _deliver(self) -> Delivery | None:
        assignment = next(self._assignments, None)
        if assignment is None:
            return None
        positions, start, count, cursor = assignment
        return Delivery(tuple([next(self._batches) for _ in positions]), start, count, cursor)

    def _release(self) -> None:
        self._batches, self._owner = iter(()), None


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if hasattr(leaf, "pin_memory") else leaf
