"""The law of order: each epoch visits each sample once, and a batch is a function of its position."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from .. import random
from ..data import Loader, Phases, as_source
from ..types import Cursor, Key, Share, Source
from .digests import Digests, batch_digests, differing
from .examples import check_count, for_all
from .look import look_at_functions
from .verdicts import JobFailed, LawBroken

_EPOCHS = 2
_SEED = 6691
_MOST = 64
_VISITS = """Look at the order (or sampler, or batch sampler) of the loader: it must give each index below the length
of the dataset once. One that draws with replacement, or oversamples on purpose, is another matter: each_once=False"""
_POSITION = """Look at what makes a batch (dataset, transform, collate function, order):
  - it draws from a generator that no key controls: time, os.urandom, a Generator of its own
  - it keeps something in its process: a cache, a counter, statistics of the first batch; each worker has its own
  - it goes through something without an order: a set, a listing of files"""


def check_order(
    loader: Any,
    *,
    each_once: bool = True,
    workers: Sequence[int] = (0, 2),
    examples: int | None = None,
) -> None:
    """Check that each epoch visits each sample once, and that a batch depends on the key and its position alone.

    Two epochs are read from their start, and again from the middle, with each number of ``workers`` and another depth
    of prefetching: at each position there must be the same bytes. For a `Loader` (and a torch ``DataLoader``) the
    indices are followed too: none comes twice in an epoch, and no more are left out than ``drop_last`` and limits say.

    Args:
        loader: as for `helios_fn.run`, or a function that makes one.
        each_once: whether to follow the indices; not for orders that repeat samples on purpose.
        workers: numbers of worker processes to compare; others than a `Loader` are read as they are.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about fifty in a second
            for a small dataset) of seeds and positions, read in this process.

    Raises:
        LawBroken: names the epoch, the batch, and the samples or leaves.
        JobFailed: the loader itself fails.
    """
    check_count(examples)
    make = loader if callable(loader) else lambda: loader
    try:
        source = as_source(make())
        for phase in range(len(source) if isinstance(source, Phases) else 1):
            _check(functools.partial(_phase, make, phase), each_once, workers, examples)
    except LawBroken as error:
        one = make()
        lines = look_at_functions({"the loader": one}, lambda: _read(_phase(lambda: one, 0), random.key(_SEED), 0, 4))
        if not lines:
            raise
        raise LawBroken("\n  - ".join([f"{error}\nA closer look:", *lines])) from error.__cause__


def _phase(make: Callable[[], Any], phase: int) -> Source:
    source = as_source(make())
    return source.source(phase) if isinstance(source, Phases) else source


def _check(make: Callable[[], Source], each_once: bool, workers: Sequence[int], examples: int | None) -> None:
    """The law for one source; each reading is of a new one, where ``make`` makes them, as in a new process."""
    source = make()
    per_epoch = source.batches_per_epoch
    count = min(_MOST, _EPOCHS * per_epoch if per_epoch is not None else 8)

    def holds(drawn: tuple[int, int]) -> None:
        seed, start = drawn
        key = random.key(seed)
        if each_once and isinstance(source, Loader):
            _check_visits(source, key)
        whole = _read(make(), key, 0, count)
        again = _read(make(), key, min(start, len(whole) - 1), count)
        _compare(whole, again, per_epoch, f"read from batch {min(start, len(whole) - 1)} on")

    if examples is not None:
        from hypothesis import strategies as st

        for_all(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, count - 1)), holds, examples)
        return
    holds((_SEED, count // 2 + 1 if count > 1 else 0))
    if not isinstance(source, Loader):
        return
    key = random.key(_SEED)
    expected = _read(source.replace(workers=workers[0]), key, 0, count)
    for number in workers[1:]:
        changed = source.replace(workers=number, prefetch=source.prefetch + 1)
        _compare(
            expected, _read(changed, key, 0, count), per_epoch, f"read by {number} workers instead of {workers[0]}"
        )


def _check_visits(loader: Loader, key: Key) -> None:
    length = len(loader.dataset) if not isinstance(loader.dataset, dict) else _columns_length(loader.dataset)
    length = length if loader.samples is None else min(length, loader.samples)
    indices = loader.replace(dataset=_Indices(length), transform=None, collate=list, workers=0, seed_globals=False)
    for epoch in range(_EPOCHS):
        batches = list(indices.epoch(key, epoch))
        visits = Counter(index for batch in batches for index in batch)
        twice = [index for index, times in visits.items() if times > 1]
        if twice:
            raise LawBroken(f"epoch {epoch} visits {_named(twice)} more than once\n{_VISITS}")
        missing = [index for index in range(length) if index not in visits]
        allowed = length if loader.batches is not None else 0
        if loader.drop_last and loader.batch_size:
            allowed = max(allowed, length % loader.batch_size)
        if len(missing) > allowed:
            raise LawBroken(f"epoch {epoch} leaves out {_named(missing)} of {length}\n{_VISITS}")


def _columns_length(columns: dict[str, Any]) -> int:
    return len(next(iter(columns.values())))


def _named(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
    return f"sample{'s' * (len(indices) > 1)} {shown}"


class _Indices(Dataset[int]):
    """A dataset whose samples are their own numbers."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def _read(source: Source, key: Key, start: int, stop: int) -> dict[int, tuple[Digests, int]]:
    """The batches from the ``start``-th on, by number, with the epoch after each; up to the end of a stream."""
    found: dict[int, tuple[Digests, int]] = {}
    try:
        cursor = _cursor(source, key, start)
        feed = source.open(cursor, key=key, share=Share("iteration"))
        try:
            for number in range(start, stop):
                delivery = next(feed)
                found[number] = batch_digests(delivery.items[0]), delivery.cursor.epoch
        except StopIteration:
            pass
        finally:
            feed.close()
            source.close()
    except Exception as error:
        raise JobFailed(f"the loader itself failed: {type(error).__name__}: {error}") from error
    return found


def _cursor(source: Source, key: Key, start: int) -> Cursor:
    """The position of the ``start``-th batch; of a stream as it tells it itself."""
    per_epoch = source.batches_per_epoch
    if per_epoch is not None:
        return Cursor(0, start // per_epoch, start % per_epoch)
    cursor = Cursor()
    feed = source.open(cursor, key=key, share=Share("iteration"))
    try:
        for _ in range(start):
            cursor = next(feed).cursor
    finally:
        feed.close()
    return cursor


def _compare(
    left: dict[int, tuple[Digests, int]], right: dict[int, tuple[Digests, int]], per_epoch: int | None, how: str
) -> None:
    for number in sorted(left.keys() & right.keys()):
        if left[number] != right[number]:
            epoch, batch = divmod(number, per_epoch) if per_epoch else (0, number)
            lines = differing(left[number][0], right[number][0]) or ["the cursor after it"]
            listed = "".join(f"\n  {line}" for line in lines[: _MOST // 8])
            raise LawBroken(f"batch {batch} of epoch {epoch} is another one when {how}:{listed}\n{_POSITION}")
