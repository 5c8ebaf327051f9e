"""Streams: data that is read from front to back and knows where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch.utils.data import default_collate

from .. import random
from ..schedule import rank_slice
from ..types import Cursor, Delivery, Feed, Json, Key, Share
from .feed import ReadingFeed
from .sampling import Collate, brief, seed_globals_for

_ALONE = Share()
OpenStream: TypeAlias = Callable[[Any, Key], Iterator[tuple[Any, Any]]]


class Stream:
    """Batches of a stream, read in the main process.

    ``open(position, key)`` returns an iterator of ``(sample, position_after)``, from the start of the
    data where ``position`` is ``None``, and otherwise from right after the sample that carried it. The
    position of the last batch that was consumed is stored in every checkpoint, so a position is a JSON
    value: a string, a number, a bool, or lists and string-keyed dicts of them.

    When a stream ends, the next epoch begins: it is opened again at ``None``. A ragged tail is a shorter
    batch. That a stream ended where a batch ended shows only on reading on; so, unlike with a
    `Loader`, a cursor may stand at the end of a pass, and the pass counts as completed once the next
    has begun. A pass that yields nothing is an error.

    Randomness: ``key`` is another one in each pass and the same whenever that pass is opened, which is
    what a stream should derive its randomness from. Draws from global generators are seeded for each
    sample while ``seed_globals`` is on; what an iterator draws before its first sample and keeps is
    not the same after a resume.

    Every process reads the whole stream and keeps its slice of each iteration.

    Args:
        open: see above.
        batch_size: samples in a batch.
        collate: makes a batch of a list of samples; default torch's ``default_collate``.
        description: identifies the data in checkpoints.
        seed_globals: as in `Loader`.
    """

    def __init__(
        self,
        open: OpenStream,
        batch_size: int,
        *,
        collate: Collate | None = None,
        description: str = "stream",
        seed_globals: bool = True,
    ) -> None:
        if not callable(open):
            raise TypeError(f"open must be a function (position, key) -> iterator, got {open!r}")
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        if collate is not None and not callable(collate):
            raise TypeError(f"collate must be a function, got {collate!r}")
        self._recipe = _Recipe(open, batch_size, collate or default_collate, str(description), bool(seed_globals))

    @property
    def batches_per_epoch(self) -> None:
        """Unknown: a stream ends when it ends."""
        return None

    def open(self, cursor: Cursor, *, key: Key, share: Share = _ALONE) -> Feed:
        """A feed that starts at ``cursor``; by default for one process, and iterations of one micro-batch.

        Raises:
            ValueError: the run counts in epochs, whose length a stream does not tell.
            RuntimeError: (while reading) the stream raised.
            TypeError: (while reading) the stream yields something else than samples and JSON positions.
        """
        if share.unit == "epoch":
            raise ValueError(
                "a stream does not tell how long its epochs are: run with unit='iteration', or give a dataset of "
                "known length to hf.Loader"
            )
        return StreamFeed(_Reader(self._recipe, cursor, key), share)

    def epoch(self, key: Key, epoch: int = 0) -> Iterator[Any]:
        """The batches of one pass, such as for validation: the same ones whenever the arguments are the same."""
        reader = _Reader(self._recipe, Cursor(epoch=epoch), key)
        try:
            while reader.cursor.epoch == epoch and (samples := reader.read()) is not None:
                yield reader.collate(samples)
        finally:
            reader.close()

    def describe(self) -> dict[str, Json]:
        """The facts that decide the bytes of the batches, as plain JSON values."""
        return {"kind": "stream", "description": self._recipe.description, "batch_size": self._recipe.batch_size}

    def close(self) -> None:
        """Nothing to do: what a feed holds goes with the feed."""


class _Recipe(NamedTuple):
    open: OpenStream
    batch_size: int
    collate: Collate
    description: str
    seed_globals: bool


class StreamFeed(ReadingFeed):
    """The deliveries of a stream, one per iteration."""

    def __init__(self, reader: _Reader, share: Share) -> None:
        super().__init__()
        self._reader = reader
        self._count = share.micro_batches
        self._slice = range(*rank_slice(share.micro_batches, share.rank, share.world))

    def _deliver(self) -> Delivery:
        items = []
        for index in range(self._count):
            # A pass that is just over yields None once; the reader then stands at the next.
            samples = self._reader.read() or self._reader.read()
            if index in self._slice:
                items.append(self._reader.collate(samples or []))
        return Delivery(tuple(items), self._slice.start, self._count, self._reader.cursor)

    def _release(self) -> None:
        self._reader.close()


class _Reader:
    """A place in a stream: the cursor of the next batch, and the iterator that stands there."""

    def __init__(self, recipe: _Recipe, cursor: Cursor, key: Key) -> None:
        self._recipe = recipe
        self._root = key
        self._key = key
        self._iterator: Iterator[tuple[Any, Any]] | None = None
        self._last = (0, 0)
        self.cursor = cursor

    def read(self) -> list[Any] | None:
        """The samples of the next batch, or ``None`` where the pass was over.

        The cursor moves behind the batch; where the pass is seen to end, to the start of the next one.
        """
        phase, epoch, batch, _ = self.cursor
        with self._globals():
            samples, position = self._read_samples()
        self._last = epoch, batch
        if len(samples) == self._recipe.batch_size:
            self.cursor = Cursor(phase, epoch, batch + 1, _plain(position))
            return samples
        if not samples and batch == 0:
            raise ValueError(f"the stream '{self._recipe.description}' yields nothing from its start (epoch {epoch})")
        self.close()
        self.cursor = Cursor(phase, epoch + 1, 0)
        return samples or None

    def collate(self, samples: list[Any]) -> Any:
        """A batch of the samples that `read` returned last."""
        if self._recipe.collate is default_collate:  # which draws nothing
            return default_collate(samples)
        epoch, batch = self._last
        with self._globals():
            if self._recipe.seed_globals:
                seed_globals_for(self._key, "collate", epoch, batch)
            return self._recipe.collate(samples)

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None and hasattr(iterator, "close"):
            iterator.close()

    def _read_samples(self) -> tuple[list[Any], Any]:
        samples: list[Any] = []
        position = self.cursor.position
        size, epoch = self._recipe.batch_size, self.cursor.epoch
        iterator = self._opened()
        first = self.cursor.batch * size
        words = None
        if self._recipe.seed_globals:
            words = random.sample_words(self._key, epoch, np.arange(first, first + size)).tolist()
        while len(samples) < size:
            if words is not None:
                random.seed_globals(words[len(samples)])
            try:
                pair = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                raise self._failed(error) from error
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(f"a stream yields pairs of a sample and the position after it, got {pair!r}")
            samples.append(pair[0])
            position = pair[1]
        return samples, position

    def _opened(self) -> Iterator[tuple[Any, Any]]:
        if self._iterator is None:
            self._key = random.fold_in(self._root, "stream", self.cursor.phase, self.cursor.epoch)
            if self._recipe.seed_globals:
                seed_globals_for(self._key, "open", self.cursor.epoch, 0)
            try:
                self._iterator = iter(self._recipe.open(self.cursor.position, self._key))
            except Exception as error:
                raise self._failed(error) from error
        return self._iterator

    def _failed(self, error: Exception) -> RuntimeError:
        _, epoch, batch, position = self.cursor
        return RuntimeError(
            f"the stream '{self._recipe.description}' failed at batch {batch} of epoch {epoch}, which starts at "
            f"position {position!r} ({brief(error)})"
        )

    def _globals(self) -> contextlib.AbstractContextManager[Any]:
        return random.preserved_globals() if self._recipe.seed_globals else contextlib.nullcontext()


def _plain(position: Any, where: str = "position") -> Json:
    """A copy of a position, for streams that go on to change theirs; refuses what JSON cannot hold."""
    if isinstance(position, bool | int | float | str) and type(position) in (bool, int, float, str):
        return position
    if type(position) is list:
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(position)]
    if type(position) is dict and all(type(name) is str for name in position):
        return {name: _plain(item, f"{where}[{name!r}]") for name, item in position.items()}
    raise TypeError(
        f"{where} of a stream is stored in checkpoints as JSON and {position!r} ({type(position).__name__}) is not: "
        "use strings, numbers, bools, and lists and string-keyed dicts of them"
    )
