"""Work in a forked process that may neither take much memory nor for ever."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .tally import Finding, Outcome

MEMORY = 256 << 20  # bytes beyond what the process had; a manifest may take 16 MiB, and its parser some times that
SECONDS = 120.0  # for what takes milliseconds: only a hang is longer


def bounded(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process with bounds. Its result must be small.

    Raises:
        Finding: it raised, died, took too long or too much memory.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, work)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], SECONDS)
        if not ready:
            raise Finding(Outcome.UNCLEAR, f"a hang: no answer within {SECONDS:.0f} s")
        with os.fdopen(reader, "rb", closefd=False) as pipe:
            data = pipe.read()
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not data:
        raise Finding(Outcome.UNCLEAR, "the process died")
    error, result = pickle.loads(data)  # written by this very program
    if error is not None:
        raise Finding(*error)
    return result


def _answer(writer: int, work: Callable[[], Any]) -> None:
    """Never returns: the process ends here."""
    try:
        _bound_memory()
        answer: Any = (None, work())
    except Finding as finding:
        answer = ((finding.outcome, str(finding)), None)
    except BaseException:
        answer = ((Outcome.UNCLEAR, traceback.format_exc()[-4000:]), None)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
