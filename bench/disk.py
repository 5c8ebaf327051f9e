"""What a disk and the page cache alone do with the bytes of a checkpoint, and a checkpoint without one of them."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

from helios_fn.checkpoint import FileSystem
from helios_fn.checkpoint.aside import spread
from helios_fn.checkpoint.output import BLOCK, WRITERS


class Timed(FileSystem):
    """As usual; ``syncing`` are the seconds spent in syncs so far."""

    syncing = 0.0

    def sync(self, handle: int) -> None:
        """Take the time."""
        start = time.perf_counter()
        super().sync(handle)
        self.syncing += time.perf_counter() - start

    def sync_folder(self, path: Path) -> None:
        """Take the time."""
        start = time.perf_counter()
        super().sync_folder(path)
        self.syncing += time.perf_counter() - start


class Nowhere(FileSystem):
    """Writes nothing: what is left of a save is to copy and to sum."""

    def write(self, handle: int, data: memoryview, start: int) -> int:
        """Say that it was done."""
        return len(data)

    def sync(self, handle: int) -> None:
        """Nothing to do."""


class ThroughCache(FileSystem):
    """Writes nothing past the page cache."""

    def direct(self, handle: int, on: bool) -> bool:
        """No."""
        return False


def disk_alone(path: Path, size: int) -> None:
    """Make as many bytes durable as a checkpoint of ``size`` has, as it does it; one block again and again."""
    files, block = FileSystem(), memoryview(mmap.mmap(-1, BLOCK))
    block[:] = os.urandom(BLOCK)
    handle = files.create(path)
    files.direct(handle, True)
    spread(lambda start: files.write(handle, block, start), range(0, size, BLOCK), threads=WRITERS)
    files.sync(handle)
    files.close(handle)


def cache_alone(path: Path, pieces: Iterable[memoryview]) -> None:
    """Hand the bytes to the system and do not ask for the disk: the least that a file can take, of one thread."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for piece in pieces:
        while piece:
            piece = piece[os.write(handle, piece) :]
    os.close(handle)
