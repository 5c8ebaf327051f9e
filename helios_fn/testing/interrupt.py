"""Interruptions to order: ways to end a run at a chosen point."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias, get_args

Kind: TypeAlias = Literal["crash", "signal", "leave", "error"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Crash(BaseException):
    """Ends a run at once, as SIGKILL would: not an ``Exception``, so nothing is saved on the way out."""


class PlannedError(Exception):
    """What a stop of the kind ``"error"`` raises, as a fault in the user's own code would."""


class Stop(NamedTuple):
    """End the run after the step of ``iteration`` in the given way; if that is done already, after the next step.

    ``"crash"`` loses everything beyond the last checkpoint, ``"signal"`` is a SIGTERM to this
    process, ``"leave"`` is a caller of `helios_fn.iterate` who breaks out of the loop, and
    ``"error"`` is an exception raised by an observer, when the step has been done but the iteration
    is not complete: it must be done again.
    """

    iteration: int
    kind: Kind = "crash"

    def __str__(self) -> str:
        return f"{self.kind} after iteration {self.iteration}"


def in_process_crash() -> NoReturn:
    """Crash as far as one can without ending the process."""
    raise Crash


class Interrupter:
    """An observer that ends the run at a `Stop`. A caller who leaves is handled by who drives `iterate`.

    Args:
        stop: when and how.
        crash: what a crash does; in a process of its own it can be a real one.
    """

    def __init__(self, stop: Stop, crash: Callable[[], None] = in_process_crash) -> None:
        self._stop = stop
        self._crash = crash
        self._done = False

    def on_iteration(self, state: Any) -> None:
        """Crash, fail or raise the signal when the iteration has come."""
        if self._done or state.counters.iteration < self._stop.iteration:
            return
        self._done = True
        if self._stop.kind == "crash":
            self._crash()
        elif self._stop.kind == "signal":
            signal.raise_signal(signal.SIGTERM)
        elif self._stop.kind == "error":
            raise PlannedError(f"planned after the step of iteration {state.counters.iteration}")


Stops: TypeAlias = Sequence[Stop | int | Sequence[Stop]] | Callable[[int], Sequence[Stop | int | Sequence[Stop]]]
"""Where to interrupt, one run for each entry; or a function of the run's number of iterations that tells it."""


def schedules(stops: Stops, last: int) -> list[list[Stop]]:
    """The interruptions of each run, checked against a run of ``last`` iterations.

    Raises:
        TypeError: an entry is neither a `Stop`, an iteration, nor a sequence of stops.
        ValueError: a stop is outside the run, of no known kind, or not in order.
    """
    found = [_as_schedule(each) for each in (stops(last) if callable(stops) else stops)]
    for schedule in found:
        for stop in schedule:
            _check(stop, last)
        iterations = [stop.iteration for stop in schedule]
        if iterations != sorted(iterations):
            raise ValueError(f"the stops of one run must be in order, got iterations {iterations}")
    return found


def _as_schedule(stop: Stop | int | Sequence[Stop]) -> list[Stop]:
    if isinstance(stop, int) and not isinstance(stop, bool):
        return [Stop(stop)]
    found = [stop] if isinstance(stop, Stop) else [*stop] if isinstance(stop, Sequence) else []
    if not found or not all(isinstance(each, Stop) for each in found):
        raise TypeError(f"stops lists iterations, Stop(iteration, kind), or sequences of these Stops; got {stop!r}")
    return found


def _check(stop: Stop, last: int) -> None:
    if type(stop.iteration) is not int:
        raise TypeError(f"a stop comes after an iteration, which is an int; got {stop.iteration!r}")
    if not 1 <= stop.iteration <= last:
        raise ValueError(f"cannot stop after iteration {stop.iteration}: the run has iterations 1 to {last}")
    if stop.kind not in KINDS:
        raise ValueError(f"cannot stop by {stop.kind!r}: choose from {', '.join(KINDS)}")


def spread(last: int, most: int = 8) -> Iterable[int]:
    """At most ``most`` iterations from 1 to ``last - 1``, evenly spread, the first and the last among them."""
    if last <= 1:
        return []
    count = min(most, last - 1)
    if count == 1:
        return [1]
    return sorted({1 + round(i * (last - 2) / (count - 1)) for i in range(count)})


def usual_stops(last: int, most: int = 8) -> list[Stop]:
    """One stop of each kind in turn, spread over a run of ``last`` iterations."""
    return [Stop(at, KINDS[i % len(KINDS)]) for i, at in enumerate(spread(last, most))]
