"""Work that is spread over several threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

MOST = 4
"""More cores than this would only wait for the memory."""

Item = TypeVar("Item")


def cores() -> int:
    """How many threads may compute at once, and gain by it."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, free)


def spread(work: Callable[[Item], object], items: Iterable[Item], *, threads: int) -> None:
    """Call ``work`` with each item, in any order, in this thread and up to ``threads - 1`` others.

    The items are asked for in order, by one thread at a time. The first error is raised when all calls that had begun
    have ended; no others begin. With one thread, the calls happen in order.
    """
    rest, lock, errors = iter(items), threading.Lock(), list[BaseException]()
    nothing = object()

    def run() -> None:
        try:
            while not errors:
                with lock:
                    item = next(rest, nothing)
                if item is nothing:
                    return
                work(item)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    helpers = [threading.Thread(target=run, name="helios_fn.checkpoint", daemon=True) for _ in range(threads - 1)]
    try:
        for helper in helpers:
            helper.start()
    except RuntimeError:  # no more threads, or the interpreter is shutting down: there are fewer
        pass
    except BaseException as error:
        errors.append(error)
    run()
    waiting = True
    while waiting:
        try:
            for helper in helpers:
                with contextlib.suppress(RuntimeError):  # it was not started, or will find nothing to do
                    helper.join()
            waiting = False
        except BaseException as error:  # Ctrl-C: what others work with must stay until they have ended
            errors.append(error)
    if errors:
        raise errors[0]
