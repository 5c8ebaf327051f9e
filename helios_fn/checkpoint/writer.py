"""Saving while training goes on: a thread writes one checkpoint, and never two at a time.

A state never changes, so what is being written need not be copied first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

THREAD_NAME = "helios_fn-checkpoint"
_NICENESS = 10
"""How much less urgent than training: with few cores, training goes first."""


class Prepared(NamedTuple):
    """A checkpoint that can be written: its folder, and the function that makes it durable there.

    ``write`` raises `CheckpointError` when the disk refuses, `StateOverwritten` when the state has changed since.
    """

    path: Path
    write: Callable[[], object]


class Save:
    """One save, on its way or ended.

    Attributes:
        path: the folder of the checkpoint.
        durable: whether the checkpoint is on disk and will stay there.
        error: what went wrong, in writing it (then it is not durable) or in what was to be done after it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durable = False
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._endings: list[Callable[[], None]] = []
        self._guard = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do. All it says is final then."""
        return self._over.is_set()

    def wait(self) -> None:
        """Return when it has ended. A signal handler that raises interrupts the wait, not the save."""
        self._over.wait()

    def when_ended(self, then: Callable[[], None]) -> None:
        """Call ``then`` when it has ended: at once if it has, else as the last act of its thread."""
        with self._guard:
            if not self.ended:
                self._endings.append(then)
                return
        then()

    def run(self, write: Callable[[], object], after_save: Callable[[], object] | None) -> None:
        """Write, do what is to be done after it, and end. Raises nothing: see ``error``."""
        try:
            write()
            self.durable = True
            if after_save is not None:
                after_save()
        except BaseException as error:
            self.error = error
        with self._guard:
            self._over.set()
            endings, self._endings = self._endings, []
        for ending in endings:
            ending()


class Writer:
    """Runs saves one after another, in a thread of its own while the caller goes on.

    The thread starts with the first save and ends with `close`. A process that exits before that ends a save which
    it has begun, and is kept by nothing else.

    Args:
        background: ``False`` makes `submit` do the work itself; the files are the same.
        after_save: called after each save that has become durable, where it was written and before it counts
            as ended, so never at the same time as another save.
    """

    def __init__(self, *, background: bool = True, after_save: Callable[[], object] | None = None) -> None:
        self._background = background
        self._after_save = after_save
        self._last: Save | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def writing(self) -> bool:
        """Whether a save is on its way."""
        return self._last is not None and not self._last.ended

    def submit(self, prepared: Prepared) -> Save:
        """Begin a save, after the one before has ended: a disk that is too slow slows training down."""
        self.drain()
        self._last = save = Save(prepared.path)
        if not self._background:
            save.run(prepared.write, self._after_save)
            return save
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME, initializer=_let_training_go_first)
        try:
            self._thread.submit(save.run, prepared.write, self._after_save)
        except RuntimeError:  # no more threads, or the interpreter is about to exit
            self._background = False
            save.run(prepared.write, self._after_save)
        return save

    def drain(self) -> None:
        """Wait until nothing is being written."""
        if self._last is not None:
            self._last.wait()

    def close(self, then: Callable[[], None]) -> None:
        """End the thread, and call ``then`` when nothing is being written: now, or as the last act of a save.

        Does not wait: `drain` does.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        if self._last is None:
            then()
        else:
            self._last.when_ended(then)


def _let_training_go_first() -> None:
    # Signals are the main thread's: here they would only interrupt system calls.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    if sys.platform == "linux":  # elsewhere threads have no priority, and their numbers are those of other processes
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
