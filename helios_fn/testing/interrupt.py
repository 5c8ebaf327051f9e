"""Interruptions to order: ways to end a run at a chosen point, as a crash, a signal or a caller who leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["crash", "signal", "leave"]


class Crash(BaseException):
    """Ends a run at once, as SIGKILL would: not an ``Exception``, so nothing is saved on the way out."""


class Stop(NamedTuple):
    """End the run after ``iteration`` in the given way.

    ``"crash"`` loses everything beyond the last checkpoint, ``"signal"`` is a SIGTERM to this
    process, ``"leave"`` is a caller of `helios_fn.iterate` who breaks out of the loop.
    """

    iteration: int
    kind: Kind = "crash"


class Interrupter:
    """An observer that ends the run at a `Stop`. A caller who leaves is handled by who drives `iterate`."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_iteration(self, state: Any) -> None:
        """Crash or raise the signal when the iteration has come."""
        if state.counters.iteration != self._stop.iteration:
            return
        if self._stop.kind == "crash":
            raise Crash
        if self._stop.kind == "signal":
            signal.raise_signal(signal.SIGTERM)


def spread(last: int, most: int = 6) -> Iterable[int]:
    """At most ``most`` iterations from 1 to ``last - 1``, evenly spread, the first and the last among them."""
    if last <= 1:
        return []
    count = min(most, last - 1)
    if count == 1:
        return [1]
    return sorted({1 + round(i * (last - 2) / (count - 1)) for i in range(count)})
