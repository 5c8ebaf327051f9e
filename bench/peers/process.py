"""Starts legs as forks of a process that has imported the library, so that a leg costs no import, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from .leg import Leg, Record, Train, read

TIMEOUT = 60.0  # seconds for one leg; an undisturbed one needs less than two


def run_leg(
    train: Train,
    root: Path,
    workers: int,
    kill_after: int | None = None,
    *,
    timeout: float = TIMEOUT,
) -> Record:
    """One leg in a process of its own, in a session of its own, so that workers whom a kill leaves behind end too.

    Returns:
        Its record. Where it ended in a way that nobody asked for, ``error`` tells how.
    """
    root.mkdir(parents=True, exist_ok=True)
    trace = root.parent / f"{root.name}.{len(list(root.parent.glob(f'{root.name}.*.jsonl')))}.jsonl"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_leg(train, Leg(root, trace, workers, kill_after), trace.with_suffix(".out"))
    status = _wait(child, timeout)
    record = read(trace)
    if status is None:
        return record._replace(error=f"no end after {timeout:g} seconds")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if record.error or record.final or (killed and kill_after is not None):
        return record
    return record._replace(error=f"ended by itself with status {status}")


def _be_the_leg(train: Train, leg: Leg, said: Path) -> None:
    """Never returns."""
    os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        leg.run(train)
    finally:
        os._exit(0)


def _wait(child: int, timeout: float) -> int | None:
    """How it ended; ``None`` if it had to be ended. Nothing of its session is left."""
    deadline = time.monotonic() + timeout
    status = None
    while status is None and time.monotonic() < deadline:
        found, how = os.waitpid(child, os.WNOHANG)
        if found:
            status = how
        else:
            time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it may be alone and gone, or not yet a leader
        os.killpg(child, signal.SIGKILL)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status
