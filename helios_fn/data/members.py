"""Batches for an ensemble whose members have data orders of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import random, tree
from ..types import Cursor, Delivery, Feed, Json, Key, Share, Source
from .loader import Loader


class Members:
    """K sources read side by side, each with a key of its own: every tensor of a batch has a leading dimension of K.

    Row i of a batch is what ``sources[i]`` delivers to a run of its own whose root key is ``keys[i]``. To be used
    with ``ensemble(step, batches="own")``, and with the keys of the members' states.

    Args:
        source: a `Loader`, which each member then reads in its own order, or one source for each member. They
            have equally many batches in an epoch and equal shapes of batches.
        keys: the root key of each member: int64 of shape (K, 2), or K keys.

    Raises:
        TypeError: a source is none, or one source is given that is no `Loader` and so cannot be opened twice.
        ValueError: there are no keys, not as many sources as keys, or epochs differ in length.
    """

    def __init__(self, source: Loader | Sequence[Source], keys: torch.Tensor | Sequence[Key]) -> None:
        self._keys = tuple(keys)
        if not self._keys:
            raise ValueError("an ensemble needs the key of at least one member")
        for key in self._keys:
            random.key_words(key)
        self._sources = _one_for_each(source, len(self._keys))
        lengths = [each.batches_per_epoch for each in self._sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"members advance together, so their epochs need equally many batches, got {lengths}")

    @property
    def batches_per_epoch(self) -> int | None:
        """The number of batches in every epoch, the same for all members."""
        return self._sources[0].batches_per_epoch

    def open(self, cursor: Cursor, *, key: Key, share: Share) -> Feed:
        """A feed of stacked batches that starts at ``cursor``; ``key``, the ensemble's own, decides nothing."""
        positions = [cursor.position] * len(self._keys) if cursor.position is None else cursor.position
        feeds: list[Feed] = []
        try:
            for source, member_key, position in zip(self._sources, self._keys, positions, strict=True):
                feeds.append(source.open(cursor._replace(position=position), key=member_key, share=share))
        except BaseException:
            _close(feeds)
            raise
        return _MembersFeed(feeds)

    def describe(self) -> dict[str, Json]:
        """The facts that decide the bytes of the batches, as plain JSON values."""
        keys: list[Json] = [list(random.key_words(key)) for key in self._keys]
        sources: list[Json] = [source.describe() for source in self._sources]
        return {"kind": "members", "keys": keys, "sources": sources}

    def close(self) -> None:
        """Close all sources."""
        _close(self._sources)


class _MembersFeed:
    """The deliveries of several feeds as one."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[Delivery]:
        return self

    def __next__(self) -> Delivery:
        found = [next(feed) for feed in self._feeds]
        first = found[0]
        for index, delivery in enumerate(found):
            here, there = first.cursor[:3], delivery.cursor[:3]
            if (first.start, first.count, here) != (delivery.start, delivery.count, there):
                raise ValueError(
                    "members advance together, but after this iteration (phase, epoch, batch) is "
                    f"{tuple(here)} for member 0 and {tuple(there)} for member {index}: their data must be equally long"
                )
        items = tuple(_stacked(column) for column in zip(*(delivery.items for delivery in found), strict=True))
        positions = tuple(delivery.cursor.position for delivery in found)
        cursor = first.cursor._replace(position=None if positions == (None,) * len(positions) else positions)
        return Delivery(items, first.start, first.count, cursor)

    def close(self) -> None:
        """Close all feeds."""
        _close(self._feeds)


def _one_for_each(source: Any, count: int) -> tuple[Source, ...]:
    if isinstance(source, Loader):
        # A loader has one reader at a time.
        return (source, *(source.replace() for _ in range(count - 1)))
    if isinstance(source, Source):
        raise TypeError(
            f"a {type(source).__name__} cannot be opened several times at once: hand over one source for each member"
        )
    sources = tuple(source)
    for index, each in enumerate(sources):
        if not isinstance(each, Source):
            raise TypeError(f"sources[{index}] must be a Loader or another Source, got {type(each).__name__}")
        if any(each is other for other in sources[:index]):
            raise ValueError(f"sources[{index}] is given twice, and a source has one reader at a time: use .replace()")
    if len(sources) != count:
        raise ValueError(f"there are {len(sources)} sources for {count} keys: give one for each member, or one Loader")
    return sources


def _stacked(batches: Sequence[Any]) -> Any:
    """One batch from those of the members."""
    rows, treespecs = zip(*map(tree.flatten, batches), strict=True)
    kinds = [[_kind(leaf) for leaf in row] for row in rows]
    for index, (treespec, row) in enumerate(zip(treespecs, kinds, strict=True)):
        if treespec != treespecs[0] or row != kinds[0]:
            raise ValueError(_difference(batches[0], batches[index], index))
    columns = zip(*rows, strict=True)
    found = [torch.stack(column) if isinstance(column[0], torch.Tensor) else column[0] for column in columns]
    return tree.unflatten(treespecs[0], found)


def _difference(first: Any, other: Any, index: int) -> str:
    for (path, here), (other_path, there) in zip(tree.items(first), tree.items(other), strict=False):
        if path == other_path and _kind(here) != _kind(there):
            return (
                f"batch{path} is {tree.describe(here)} for member 0 and {tree.describe(there)} for member {index}: "
                "what members train on together has equal shapes, dtypes and scalars"
            )
    return f"the batch of member {index} has another structure than that of member 0"


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.dtype
    return type(leaf), tree.scalar_bytes(leaf)


def _close(sources: Sequence[Source | Feed]) -> None:
    for source in sources:
        source.close()
