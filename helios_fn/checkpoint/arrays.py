"""The tensor file of a checkpoint, read into memory while each of its bytes is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import CheckpointError
from . import header
from .aside import AHEAD, Aside
from .checksum import Checksums, FileEntry, damaged
from .files import PIECE, THREADED, FileSystem, open_file, read_exactly, split

_SHOWN = 3


def read(
    files: FileSystem,
    path: Path,
    expected: FileEntry,
    entries: Sequence[header.Entry],
    targets: Callable[[], Iterable[memoryview]],
) -> None:
    """Read the arrays into ``targets()``, one after another; each byte of the file is checked.

    The targets are asked for one by one, after the file's length was found to be right.

    Raises:
        CheckpointError: the file is missing or damaged; the message says between which bytes.
    """
    start = header.encode(entries)
    if len(start) + sum(entry.size for entry in entries) != expected.size:
        raise CheckpointError(f"{path} is damaged: the length in the manifest does not fit the state")
    checksums, found_start = Checksums(), bytearray(len(start))
    with open_file(files, path) as handle:
        size = files.size(handle)
        if size != expected.size:
            raise CheckpointError(f"{path} is damaged: it has {size} bytes instead of {expected.size}")
        with Aside(checksums.update, threaded=size >= THREADED) as check:
            for piece in split([memoryview(found_start)]):
                read_exactly(files, handle, piece, path)
                check(piece)
            for target in targets():
                for piece in split([target]):
                    read_exactly(files, handle, piece, path)
                    check(piece)
    report(path, expected, checksums.entry(), lambda: _names(entries, len(start)))
    if found_start != start:
        raise CheckpointError(f"{path} is damaged: its header is not the one that follows from the state")


def scratch(sizes: Iterable[int]) -> Iterator[memoryview]:
    """Targets of the given sizes in the same few pieces of memory, for a file that is only to be checked."""
    sizes = list(sizes)
    size = min(PIECE, max(sizes, default=0))
    # As many as can be waiting for their checksum, being summed, and being filled.
    pieces = [memoryview(bytearray(size)) for _ in range(min(AHEAD + 2, -(-sum(sizes) // max(size, 1))))]
    number = 0
    for rest in sizes:
        while rest:
            piece = pieces[number % len(pieces)][:rest]
            yield piece
            rest -= len(piece)
            number += 1


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
