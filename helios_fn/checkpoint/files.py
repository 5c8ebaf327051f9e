"""The file system as checkpoints see it: every effect is one method call of one small object."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import CheckpointError

PIECE = 512 << 10
"""How many bytes are read at once: they are still in the cache when their checksum is computed."""

THREADED = 4 << 20
"""From how many bytes on more threads than one pay."""

# Errors that tell of the file itself. Others (no permission, a network that fails) may be gone at the
# next try, and are no reason to give up a checkpoint.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV}
# Errors that tell that a folder cannot have been changed by us.
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}

# What file systems say that have no such operation.
_CANNOT = {errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP}


class FileSystem:
    """The calls that checkpoints are made of, each as thin as the system call below it.

    A test hands in an object with the same methods that fails, stops or records at the n-th call.
    Every failure is an ``OSError``. Symbolic links are never followed in a path's last part.
    """

    def listdir(self, path: Path) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(path))

    def is_folder(self, path: Path) -> bool:
        """Whether ``path`` is a folder; a link to one is not."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def mkdir(self, path: Path) -> None:
        """Make a folder whose parent exists."""
        os.mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        """Move atomically within one file system."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file or a link."""
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def create(self, path: Path) -> int:
        """Create a file that does not exist yet, for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def open(self, path: Path) -> int:
        """Open a regular file for reading."""
        # O_NONBLOCK: opening a pipe by mistake must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return handle

    def size(self, handle: int) -> int:
        """The length of an open file in bytes."""
        return os.fstat(handle).st_size

    def read(self, handle: int, into: memoryview, start: int) -> int:
        """Read at most ``len(into)`` bytes from the byte ``start`` on; 0 at the end of the file.

        Several threads may read a file at once.
        """
        return os.preadv(handle, [into], start)

    def write(self, handle: int, data: memoryview, start: int) -> int:
        """Write some of ``data`` to the bytes of the file from ``start`` on; returns how many.

        Several threads may write a file at once.
        """
        return os.pwrite(handle, data, start)

    def direct(self, handle: int, on: bool) -> bool:
        """Let what is written from now on go to the disk past the page cache, or no longer; returns whether it does.

        It may then be refused as an invalid argument if it is not aligned, in memory or in the file.
        """
        flag = getattr(os, "O_DIRECT", 0)  # Linux and FreeBSD
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        try:
            fcntl.fcntl(handle, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
        except OSError:
            if on:  # the file system cannot
                return False
            raise
        return on and flag != 0

    def allocate(self, handle: int, size: int) -> None:
        """Set space aside for a new file, and make it ``size`` bytes long; where that is not possible, do nothing.

        A lack of space is an error now, and not later.
        """
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    def flush_soon(self, handle: int, start: int, size: int) -> None:
        """Let the disk begin with bytes that were written and are not needed in memory: a hint, and no promise."""
        # Linux begins to write what it cannot drop, and the fsync has less to wait for.
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, start, size, os.POSIX_FADV_DONTNEED)

    def sync(self, handle: int) -> None:
        """Make an open file durable."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close an open file."""
        os.close(handle)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems have no such operation
                raise
        finally:
            os.close(handle)


OS = FileSystem()
"""The real file system."""


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into a `CheckpointError` that says what could not be done, where and why."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        where = f" at {error.filename}" if error.filename else ""
        raise CheckpointError(f"cannot {doing}: {error.strerror or error} ({code}){where}") from error


def split(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same memory in pieces of at most `PIECE` bytes, none of them empty."""
    for piece in pieces:
        for start in range(0, len(piece), PIECE):
            yield memoryview(piece)[start : start + PIECE]


@contextlib.contextmanager
def open_file(files: FileSystem, path: Path) -> Iterator[int]:
    """Open a file for reading.

    Raises:
        CheckpointError: there is no regular file of that name.
    """
    try:
        handle = files.open(path)
        try:
            yield handle
        finally:
            files.close(handle)
    except OSError as error:
        if error.errno in _DAMAGE:
            raise CheckpointError(f"{path} is missing, or no regular file: {error.strerror}") from error
        raise


def read_file(files: FileSystem, path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        CheckpointError: the file is missing, is longer, or ends early.
    """
    with open_file(files, path) as handle:
        size = files.size(handle)
        if size > limit:
            raise CheckpointError(f"{path} is damaged: it has {size} bytes; at most {limit} were expected")
        data = bytearray(size)
        read_exactly(files, handle, memoryview(data), path)
        return bytes(data)


def read_exactly(files: FileSystem, handle: int, into: memoryview, path: Path, start: int = 0) -> None:
    """Fill ``into`` from an open file, from the byte ``start`` on.

    Raises:
        CheckpointError: the file ends before that.
    """
    while into:
        count = files.read(handle, into, start)
        if count == 0:
            raise CheckpointError(f"{path} is damaged: it ends {len(into)} bytes early")
        into, start = into[count:], start + count


def make_folders(files: FileSystem, path: Path) -> None:
    """Make a folder and its parents durably; one that exists is left as it is."""
    if path.is_dir():  # a root may well be reached through a link
        # A process that was killed may have made it last, and not have come to this.
        try:
            files.sync_folder(path.parent)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        return
    make_folders(files, path.parent)
    with contextlib.suppress(FileExistsError):
        files.mkdir(path)
    files.sync_folder(path.parent)


def sync_files(files: FileSystem, folder: Path) -> None:
    """Make durable what another process has written into a folder, which may still be in memory only."""
    for name in files.listdir(folder):
        with open_file(files, folder / name) as handle:
            files.sync(handle)
    files.sync_folder(folder)


def remove_folder(files: FileSystem, path: Path) -> None:
    """Remove a folder and the files in it, or whatever else bears the name, if anything does."""
    if not files.is_folder(path):
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)
        return
    for name in files.listdir(path):
        files.remove(path / name)
    files.rmdir(path)
