"""A file of a checkpoint on its way to the disk: in one pass over the memory it is summed and written.

It is cut into the chunks of its checksums, which threads take one after another. Each copies a block of its chunk into
a buffer, sums it there and writes it from there: in the cache of its core. While the disk takes one block, other
threads prepare theirs.

Whole chunks go to the disk directly, into space that was set aside before. Without a copy of them in the page cache
a save takes two thirds of the time of a core, and others keep what they have there. Where the copy cannot be avoided,
the system is told to begin with the writing at once.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .aside import spread
from .checksum import CHUNK, Checksums, FileEntry
from .files import FileSystem

BLOCK = 1 << 20
"""How many bytes are written at once; what is written directly begins and ends at multiples of it."""

WRITERS = 4
"""Threads where the cores are free: some wait for the disk while others compute."""

_FLUSHED = 4  # chunks at once: each call makes all cores come together

_SMALL = 64 << 10  # copied with the interpreter's lock held: giving it back would take longer


def write_file(
    files: FileSystem,
    path: Path,
    pieces: Iterable[bytes | memoryview],
    *,
    size: int | None = None,
    threaded: bool = False,
) -> FileEntry:
    """Create a file, make it durable and say what it holds.

    Args:
        files: the file system.
        path: must not exist.
        pieces: the content, asked for in order, and some chunks ahead of what is written.
        size: how many bytes they have in all, where that is known: else nothing is written directly.
        threaded: with more threads than the caller's own.
    """
    handle = files.create(path)
    try:
        output, rest = _Output(files, handle), list[_Chunk]()

        def whole() -> Iterator[_Chunk]:
            for chunk in _chunks(pieces):
                if chunk.size < CHUNK:
                    rest.append(chunk)
                    return
                if chunk.number == 0 and size is not None:  # before anything is written
                    output.go_direct(size)
                yield chunk

        spread(output.take, whole(), threads=WRITERS if threaded else 1)
        for chunk in rest:
            output.go_through_cache()
            output.take(chunk)
        files.sync(handle)
    finally:
        files.close(handle)
    entry = output.entry()
    assert size is None or entry.size == size, f"{path} was to have {size} bytes and got {entry.size}"
    return entry


class _Chunk(NamedTuple):
    """Consecutive bytes of a file: as many as have one checksum, or the rest."""

    number: int
    views: list[memoryview]
    size: int


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[_Chunk]:
    number, views, size = 0, list[memoryview](), 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            view = rest[: CHUNK - size]
            rest = rest[len(view) :]
            views.append(view)
            size += len(view)
            if size == CHUNK:
                yield _Chunk(number, views, size)
                number, views, size = number + 1, [], 0
    if size:
        yield _Chunk(number, views, size)


class _Output:
    """An open file, to which any number of threads give its chunks."""

    def __init__(self, files: FileSystem, handle: int) -> None:
        self._files, self._handle = files, handle
        self._direct = False
        self._buffers: list[mmap.mmap] = []  # aligned to a page, as direct writing wants it
        self._found: dict[int, FileEntry] = {}

    def go_direct(self, size: int) -> None:
        """Write what follows past the page cache, if the file system can; the file will have ``size`` bytes."""
        self._direct = self._files.direct(self._handle, True)
        if self._direct:
            # Else each write would make the file longer, and those have to wait for each other.
            self._files.allocate(self._handle, size)

    def go_through_cache(self) -> None:
        """Write what follows through the page cache."""
        if self._direct:
            self._files.direct(self._handle, False)
            self._direct = False  # last, so that a thread that finds it so is right

    def take(self, chunk: _Chunk) -> None:
        """Sum and write a chunk."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = mmap.mmap(-1, BLOCK)
        checksums, position = Checksums(), chunk.number * CHUNK
        for block in _blocks(chunk.views, memoryview(buffer)):
            checksums.update(block)
            self._write(block, position)
            position += len(block)
        if not self._direct and (chunk.number + 1) % _FLUSHED == 0:
            self._files.flush_soon(self._handle, (chunk.number + 1 - _FLUSHED) * CHUNK, _FLUSHED * CHUNK)
        self._found[chunk.number] = checksums.entry()
        self._buffers.append(buffer)

    def entry(self) -> FileEntry:
        """What all chunks make."""
        found = [self._found[number] for number in range(len(self._found))]
        return FileEntry(sum(each.size for each in found), tuple(each.chunks[0] for each in found))

    def _write(self, data: memoryview, start: int) -> None:
        while data:
            was_direct = self._direct
            try:
                count = self._files.write(self._handle, data, start)
            except OSError as error:
                # Too little was written the last time, or the file system has other ideas of alignment.
                if error.errno != errno.EINVAL or not was_direct:
                    raise
                self.go_through_cache()
            else:
                data, start = data[count:], start + count


def _blocks(views: Iterable[memoryview], buffer: memoryview) -> Iterator[memoryview]:
    """The bytes of ``views``, copied into ``buffer`` as often as it is full."""
    array, filled = np.frombuffer(buffer, np.uint8), 0
    for view in views:
        rest = view
        while rest:
            piece = rest[: len(buffer) - filled]
            rest = rest[len(piece) :]
            if len(piece) < _SMALL:
                buffer[filled : filled + len(piece)] = piece
            else:
                array[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
            if filled == len(buffer):
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]
