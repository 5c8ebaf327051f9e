"""Files that only grow, and can be cut back to an earlier size.

A row that `AppendFile.write` has taken survives the death of the process; what `AppendFile.flush`
has returned survives the death of the machine. Cutting is idempotent, so a crash while cutting is
mended by cutting again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger("helios_fn")

_LONGEST = 1 << 16  # bytes of a line that count


class AppendFile:
    """A file open for appending, created where it does not exist.

    There is no buffer: rows are rare, and a forked process has nothing to write a second time. Where
    the disk refuses bytes, they stay pending and are tried again before all later ones, so that a
    mark never stands for a row that is not in the file, and no row is in it twice.
    """

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "a+")
        self._size = self._file.seek(0, os.SEEK_END)
        self._durable = -1
        self._pending = bytearray()
        sync_folder(path.parent)

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._pending += data
        self._drain()

    def flush(self) -> int:
        """Make all that was written durable and return the file's size in bytes."""
        self._drain()
        if self._durable != self._size:
            os.fsync(self._file.fileno())
            self._durable = self._size
        return self._size

    def fingerprint(self, lines: int = 1) -> int:
        """See `fingerprint`."""
        return _fingerprint(self._file, lines)

    def close(self) -> None:
        """Flush and close. Closing twice is allowed."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def _drain(self) -> None:
        while self._pending:
            written = self._file.write(self._pending)
            self._size += written
            del self._pending[:written]


def cut(path: Path, size: int, superseded: Path | None) -> bool:
    """Cut ``path`` back to ``size`` bytes, durably; keep the tail in the folder ``superseded`` if given.

    Returns whether the file holds ``size`` bytes now. A missing or shorter file is left as it is, with
    a warning: no crash of ours takes durable bytes away.
    """
    found = path.stat().st_size if path.exists() else None
    if found is None or found < size:
        state = "is missing" if found is None else f"has {found} bytes instead of {size}"
        logger.warning("log %s %s: rows written before the resumed checkpoint are lost, going on", path, state)
        return False
    if found > size:
        with open(path, "r+b") as file:
            if superseded is not None:
                file.seek(size)
                _keep(file, superseded, path.name)
            file.truncate(size)
            os.fsync(file.fileno())
    return True


def fingerprint(path: Path, lines: int = 1) -> int:
    """A checksum of a file's first lines, which stay as the file grows. A time in them tells two runs apart."""
    with io.FileIO(path) as file:
        return _fingerprint(file, lines)


def set_aside(path: Path, target: Path) -> None:
    """Move a file to ``target``, or to a free name beside it where that is taken."""
    make_folder(target.parent)
    target = spare(target)
    shutil.move(path, target)
    sync_folder(target.parent)
    sync_folder(path.parent)
    logger.warning("log %s was set aside as %s", path, target)


def spare(path: Path) -> Path:
    """``path``, or the first of ``path.1``, ``path.2``, ... when it is taken."""
    spare, count = path, 0
    while spare.exists():
        count += 1
        spare = path.with_name(f"{path.name}.{count}")
    return spare


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def check_writable(folder: Path) -> None:
    """Find out now, not when the first file begins, whether files can be made in ``folder``."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system knows how to."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor do all file systems sync them
        pass
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(sink: str, path: Path) -> Iterator[None]:
    """Let an OSError name the sink, the path and the remedy; its class and ``errno`` stay."""
    try:
        yield
    except OSError as error:
        message = f"sink {sink!r} cannot write here ({error.strerror or error}): give it another path"
        raise OSError(error.errno, message, str(path)) from error


def _fingerprint(file: io.FileIO, lines: int) -> int:
    file.seek(0)
    return zlib.crc32(b"\n".join(file.read(_LONGEST).split(b"\n")[:lines]))


def _keep(file: BinaryIO, folder: Path, name: str) -> None:
    """Copy the rest of ``file`` into ``folder``: complete under its name, or not at all."""
    make_folder(folder)
    partial = folder / f"{name}.partial"
    with open(partial, "wb") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())
    os.replace(partial, spare(folder / name))
    sync_folder(folder)
