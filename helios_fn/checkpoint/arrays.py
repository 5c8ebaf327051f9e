"""The tensor file of a checkpoint, read into memory while each of its bytes is checked."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from ..errors import CheckpointError
from . import header
from .aside import cores, spread
from .checksum import CHUNK, Checksums, FileEntry, damaged
from .files import PIECE, THREADED, FileSystem, open_file, read_exactly, split

_SMALL = 32 << 10  # shorter neighbours are read together
_SHOWN = 3

Target: TypeAlias = memoryview | int
"""Where an array goes; or the number of its bytes, if it is to be checked and not kept."""


def read(
    files: FileSystem,
    path: Path,
    expected: FileEntry,
    entries: Sequence[header.Entry],
    targets: Callable[[], Sequence[Target]] | None,
) -> None:
    """Read the arrays into ``targets()``, if given; each byte of the file is checked in any case.

    Each chunk is read and summed by one thread, piece by piece, so that a piece is summed from the cache. The
    targets are asked for when the file's length was found to be right.

    Raises:
        CheckpointError: the file is missing or damaged; the message says between which bytes.
    """
    start = header.encode(entries)
    if len(start) + sum(entry.size for entry in entries) != expected.size:
        raise CheckpointError(f"{path} is damaged: the length in the manifest does not fit the state")
    found, found_start = [""] * len(expected.chunks), bytearray(len(start))
    with open_file(files, path) as handle:
        size = files.size(handle)
        if size != expected.size:
            raise CheckpointError(f"{path} is damaged: it has {size} bytes instead of {expected.size}")
        read_exactly(files, handle, memoryview(found_start), path, 0)
        memory = None if targets is None else _Memory([memoryview(bytearray(len(start))), *targets()])

        def take(number: int) -> None:
            checksums, stop = Checksums(), min((number + 1) * CHUNK, size)
            position = number * CHUNK
            for group in _pieces(memory, position, stop):
                whole = group[0] if len(group) == 1 else memoryview(bytearray(sum(map(len, group))))
                read_exactly(files, handle, whole, path, position)
                checksums.update(whole)
                position += len(whole)
                if len(group) > 1:
                    _scatter(whole, group)
            found[number] = checksums.entry().chunks[0]

        spread(take, range(len(found)), threads=min(cores(), len(found)) if size >= THREADED else 1)
    report(path, expected, FileEntry(size, tuple(found)), lambda: _names(entries, len(start)))
    if found_start != start:
        raise CheckpointError(f"{path} is damaged: its header is not the one that follows from the state")


class _Memory:
    """Pieces of memory that hold a file, one after another."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        sizes = (target if isinstance(target, int) else len(target) for target in targets)
        self._starts = [0, *itertools.accumulate(sizes)]

    def between(self, start: int, stop: int) -> Iterator[memoryview]:
        """The memory of a range of bytes of the file, in order; new memory for what is not kept."""
        for number in range(bisect.bisect_right(self._starts, start) - 1, len(self._targets)):
            first, target = self._starts[number], self._targets[number]
            if first >= stop:
                return
            low, high = max(start - first, 0), min(stop, self._starts[number + 1]) - first
            if isinstance(target, int):
                yield from (memoryview(bytearray(min(PIECE, high - at))) for at in range(low, high, PIECE))
            else:
                yield target[low:high]


def _pieces(memory: _Memory | None, start: int, stop: int) -> Iterator[list[memoryview]]:
    """What to read at once: a piece of the memory, or several small ones; the same scratch memory without any."""
    if memory is None:
        scratch = memoryview(bytearray(min(PIECE, stop - start)))
        for position in range(start, stop, PIECE):
            yield [scratch[: stop - position]]
        return
    group: list[memoryview] = []
    for piece in split(memory.between(start, stop)):
        if group and (len(piece) > _SMALL or len(group[0]) > _SMALL or len(group) == PIECE // _SMALL):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _scatter(whole: memoryview, group: list[memoryview]) -> None:
    position = 0
    for piece in group:
        piece[:] = whole[position : position + len(piece)]
        position += len(piece)


def report(
    path: Path,
    expected: FileEntry,
    found: FileEntry,
    names: Callable[[], Iterable[tuple[range, str]]] = lambda: (),
) -> None:
    """Compare a file with what the manifest says of it; ``names()`` tells what lies where in it.

    Raises:
        CheckpointError: they differ; the message says where.
    """
    if found.size != expected.size:
        raise CheckpointError(f"{path} is damaged: it has {found.size} bytes instead of {expected.size}")
    places = damaged(expected, found)
    if not places:
        return
    where = ", ".join(f"{place.start} to {place.stop - 1}" for place in places[:_SHOWN])
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    hit = [name for place, name in names() if any(_overlap(place, other) for other in places)]
    inside = f", in {', '.join(hit[:_SHOWN])}{f' and {len(hit) - _SHOWN} more' if len(hit) > _SHOWN else ''}"
    raise CheckpointError(
        f"{path} is damaged: the checksum of bytes {where}{more} differs from the manifest's{inside if hit else ''}"
    )


def _names(entries: Sequence[header.Entry], start: int) -> Iterator[tuple[range, str]]:
    for entry in entries:
        yield range(start, start + entry.size), entry.name[:100]
        start += entry.size


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
