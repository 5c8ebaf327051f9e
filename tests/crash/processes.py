"""Real runs in processes of their own, killed with SIGKILL at chosen instants."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..forked import CONTEXT
from ..jobs import Case
from . import child


@dataclasses.dataclass(frozen=True)
class Kill:
    """SIGKILL ``delay`` seconds after the process has reported ``iteration``, or that it is ``"validated"``.

    With ``later`` the iteration counts from where the process starts.
    """

    iteration: int
    delay: float
    workers: int = 0
    later: bool = False
    event: str = "iteration"


@dataclasses.dataclass
class Leg:
    """What one process reported.

    Attributes:
        start: the iteration that it started from, -1 if it did not come so far.
        saved: the last iteration reported as saved, -1 if none.
        last: its last message.
        killed: whether it was killed.
        times: when each validation was reported, and when the save after it was.
    """

    start: int = -1
    saved: int = -1
    last: tuple[str, Any] | None = None
    killed: bool = False
    times: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    def hear(self, message: tuple[str, Any]) -> None:
        self.last = message
        kind, value = message
        if kind in ("validated", "saved"):
            self.times[kind, value] = time.perf_counter()
        if kind == "start":
            self.start = value
        elif kind == "saved":
            self.saved = max(self.saved, value)

    def is_due(self, kill: Kill) -> bool:
        return self.last == (kill.event, kill.iteration + (max(self.start, 0) if kill.later else 0))

    def save_window(self) -> float:
        """The median time from the end of a validation, which a save follows, to the report of the save, in seconds."""
        begun = {at: when for (kind, at), when in self.times.items() if kind == "validated"}
        done = {at: when for (kind, at), when in self.times.items() if kind == "saved"}
        return statistics.median(done[at] - begun[at] for at in begun.keys() & done.keys())


class Process:
    """A run in a process of its own."""

    def __init__(self, case: Case, root: Path, workers: int, ambient: int) -> None:
        self.pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=child.train, args=(case, str(root), workers, ambient, other))
        self.process.start()
        other.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def messages(self) -> Iterator[tuple[str, Any]]:
        """What it reports, until it ends or is killed."""
        with contextlib.suppress(EOFError):
            while True:
                yield self.pipe.recv()

    def kill(self) -> None:
        """End it. Joining it would wait for its loader workers too: they outlive it by seconds, and the next process
        must not mind."""
        self.process.kill()
        _orphans.append(self.pid)
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(self.pid, 0)
                time.sleep(0.001)


def leg(case: Case, root: Path, workers: int, ambient: int, kill: Kill | None) -> Leg:
    """One process: killed as told, or run to its end."""
    process, found = Process(case, root, workers, ambient), Leg()
    for message in process.messages():
        found.hear(message)
        if kill is not None and found.is_due(kill):
            time.sleep(kill.delay)
            process.kill()
            while process.pipe.poll():  # what it had reported before
                try:
                    found.hear(process.pipe.recv())
                except EOFError:
                    break
            found.killed = True
            return found
    process.process.join(60)
    assert process.process.exitcode == 0, "the child failed: its traceback is above"
    return found


_orphans: list[int] = []  # process groups of the killed, which may still have loader workers


def end_orphans() -> None:
    while _orphans:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_orphans.pop(), signal.SIGKILL)
