"""A lock on a run's folder, freed with the process that holds it, however it ends.

The lock is a [flock](https://man7.org/linux/man-pages/man2/flock.2.html) on a file that is never
removed. A flock belongs to the open file, which forked children share, so a lingering data-loader
worker would keep it after its parent was killed: each forked child closes its copy at once. (POSIX
record locks are not inherited, but are lost as soon as anything in the process closes the file,
a backup of the folder for instance.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import RootLocked
from .files import disk_errors

_MAX_HOLDER_SIZE = 4096
_held: set[Lock] = set()  # strong: a lock whose object is forgotten is still held, and inherited
_children_forget = False


class Lock:
    """Holds ``path`` exclusively from construction to `release`, the end of a ``with``, or the process's end.

    Raises:
        RootLocked: somebody else holds it; the message says who.
        CheckpointError: the file cannot be opened or locked.
    """

    def __init__(self, path: Path) -> None:
        _let_children_forget()
        with disk_errors(f"lock {path}"):
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            _held.add(self)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write_holder(self._handle)
            except BlockingIOError:
                holder = _holder(self._handle)
                self.release()
                raise RootLocked(
                    f"{path.parent} is in use by {holder}; wait for it, stop it, or choose another root"
                ) from None
            except OSError:
                self.release()
                raise

    def release(self) -> None:
        """Let others have it. Releasing twice does nothing."""
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            os.close(handle)

    @property
    def held(self) -> bool:
        """Whether this process holds it; a forked child does not."""
        return self._handle is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _let_children_forget() -> None:
    global _children_forget
    if not _children_forget:
        _children_forget = True
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.release()


def _write_holder(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _holder(handle: int) -> str:
    # The holder may be about to write its name, or an editor may have left anything.
    try:
        holder = json.loads(os.pread(handle, _MAX_HOLDER_SIZE, 0))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
