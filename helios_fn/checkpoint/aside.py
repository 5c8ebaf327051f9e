"""Work in other threads: on the side and in order, or spread over several."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

AHEAD = 4
"""How many items may wait for an `Aside`."""

MOST = 4
"""More threads than this would only wait for the memory."""

Item = TypeVar("Item")


class Aside(Generic[Item]):
    """Calls ``work`` with each item, in order; all calls have returned at the end of the ``with``.

    An error of ``work`` is raised there, and the items after it are dropped. Without ``threaded``, or where no
    thread can be started (the interpreter is shutting down), the calls happen in the caller's thread.
    """

    def __init__(self, work: Callable[[Item], None], *, threaded: bool) -> None:
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if threaded:
            thread = threading.Thread(target=self._run, name="helios_fn.checksums", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:
                pass

    def __call__(self, item: Item) -> None:
        """Hand over the next item; waits while ``AHEAD`` others do."""
        if self._thread is None:
            self._work(item)
        else:
            self._items.put(item)

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._items.put(None)
            self._thread.join()
        if error is None and self._error is not None:
            raise self._error


def spread(work: Callable[[int], None], count: int, *, threaded: bool) -> None:
    """Call ``work`` with each number below ``count``, in any order, in as many threads as there are free cores.

    The first error is raised when all calls that had begun have ended; no others begin. Without ``threaded``,
    the calls happen in the caller's thread and in order.
    """
    numbers, lock, errors = iter(range(count)), threading.Lock(), list[BaseException]()

    def run() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                work(number)
            except BaseException as error:
                errors.append(error)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    helpers = []
    for _ in range(min(MOST, cores, count) - 1 if threaded else 0):
        helper = threading.Thread(target=run, name="helios_fn.checksums", daemon=True)
        with contextlib.suppress(RuntimeError):  # as above
            helper.start()
            helpers.append(helper)
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
