"""Interleaved timing of a few cases in one process.

A round runs a chunk of every case; the cases take turns in being first. What other programs of the machine
do hits all cases of a round alike, so ratios are taken within rounds and then their median.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A measured stretch: wall-clock and CPU seconds of this process, all its threads, and how many iterations."""

    wall: float
    cpu: float
    iterations: int


class Whole(NamedTuple):
    """A case that measures itself, such as a framework's own loop: ``function()`` returns a `Span`."""

    function: Callable[[], Span]


class Skip(NamedTuple):
    """A case that cannot be measured here, and why."""

    reason: str


Case = Callable[[], Any] | Whole | Skip


class Stopwatch:
    """Reads both clocks: ``watch = Stopwatch()``; ``watch.span(iterations)`` is the time since then."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def span(self, iterations: int) -> Span:
        """The time since the watch was made."""
        return Span(time.perf_counter() - self.wall, time.process_time() - self.cpu, iterations)


class Timing:
    """What was measured: per case and round, microseconds per iteration."""

    def __init__(self, names: list[str]) -> None:
        self.wall: dict[str, list[float]] = {name: [] for name in names}
        self.cpu: dict[str, list[float]] = {name: [] for name in names}

    def add(self, name: str, span: Span) -> None:
        """Record one chunk of one case."""
        self.wall[name].append(span.wall / span.iterations * 1e6)
        self.cpu[name].append(span.cpu / span.iterations * 1e6)

    def __contains__(self, name: object) -> bool:
        return bool(self.wall.get(name))  # type: ignore[call-overload]

    def median(self, name: str, clock: str = "wall") -> float:
        """Microseconds per iteration."""
        return statistics.median(getattr(self, clock)[name])

    def ratios(self, name: str, base: str, clock: str = "wall", above: str | None = None) -> list[float]:
        """The case over ``base``, round by round; of what both cost more than the case ``above``, if given."""
        times = getattr(self, clock)
        floors = times[above] if above else [0.0] * len(times[name])
        return [(a - f) / (b - f) for a, b, f in zip(times[name], times[base], floors, strict=True)]

    def ratio(self, name: str, base: str, clock: str = "wall", above: str | None = None) -> float | None:
        """The median of the per-round ratios; ``None`` where one of the cases was skipped."""
        if name not in self or base not in self:
            return None
        return statistics.median(self.ratios(name, base, clock, above))

    def excess(self, name: str, base: str, clock: str = "wall") -> float | None:
        """The median over rounds of what the case costs more than ``base``, in microseconds per iteration."""
        if name not in self or base not in self:
            return None
        times = getattr(self, clock)
        return statistics.median(a - b for a, b in zip(times[name], times[base], strict=True))


def measure(cases: Mapping[str, Case], *, rounds: int, chunk: float, warmup: int = 3) -> Timing:
    """Time the cases. ``chunk`` is the wanted length of a case's turn in seconds."""
    runnable = {name: case for name, case in cases.items() if not isinstance(case, Skip)}
    samplers = {name: sampler(case, chunk, warmup) for name, case in runnable.items()}
    timing, names = Timing(list(cases)), list(runnable)
    gc.collect()
    gc.freeze()  # the garbage of making the cases is not theirs to sweep; the garbage of running them is
    try:
        for turn in range(rounds):
            first = turn % max(len(names), 1)
            for name in names[first:] + names[:first]:
                timing.add(name, samplers[name]())
    finally:
        gc.unfreeze()
    return timing


def in_situ(around: Callable[[], Any], parts: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Microseconds of single calls, each made right after a call of ``around``; medians.

    A function that is called again and again finds its code and data in the caches; between two training steps
    it does not, and Python then costs about five times as much.
    """
    times: dict[str, list[float]] = {name: [] for name in ("", *parts)}
    calls: dict[str, Callable[[], Any]] = {
        "": lambda: None,
        **parts,
    }  # an empty call, to be subtracted: the clock is not free either
    until = time.perf_counter() + seconds
    while not times[""] or time.perf_counter() < until:
        for name, part in calls.items():
            around()
            start = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) * 1e6 for name, found in times.items()}
    nothing = medians.pop("")
    return {name: median - nothing for name, median in medians.items()}


def sampler(case: Callable[[], Any] | Whole, chunk: float, warmup: int) -> Callable[[], Span]:
    """A function that runs one chunk of a warmed-up case."""
    if isinstance(case, Whole):
        case.function()
        return case.function
    for _ in range(max(warmup, 1)):
        case()
    iterations, span = 1, timed(case, 1)
    while span.wall < chunk / 4:  # doubling, as one call may be too short for the clock
        iterations *= 2
        span = timed(case, iterations)
    iterations = max(1, round(iterations * chunk / span.wall))
    return lambda: timed(case, iterations)


def timed(function: Callable[[], Any], iterations: int) -> Span:
    """Call the function so many times."""
    turns = range(iterations)
    watch = Stopwatch()
    for _ in turns:
        function()
    return watch.span(iterations)
