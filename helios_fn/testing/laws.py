"""The laws as functions: call them on your own step, loader and configuration, in your own tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import PurityError
from .compare import assert_same_run
from .examples import check_count, for_all
from .interrupt import Stop, Stops, schedules, spread, usual_stops
from .look import closer_look
from .trace import Job, Trace, run_with
from .verdicts import JobFailed, LawBroken

_SAVES = 16  # in a run; where the job does not say when, and more often would be most of the work


def check_resume(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    stops: Stops | None = None,
    examples: int | None = None,
    **run_keywords: Any,
) -> None:
    """Check that a run stopped anywhere and resumed equals the run that never stopped, bit for bit.

    The law of resumption, over final state, batches, log rows and reason. Runs in temporary folders;
    ``cfg.root`` is not touched. All parts of a run share this process, so what a job keeps in it is not
    lost between them and goes unnoticed: `check_resume_processes` is stricter, and slower.

    Args:
        step: as for `helios_fn.run`.
        state: the initial state, or a function that makes it.
        loader: the loader, or a function that makes one.
        cfg: keep ``total`` small: the job runs once for each stop.
        stops: where to interrupt, one run for each entry: a `Stop`, an iteration (a crash after it), or
            several stops of one run; or a function of the number of iterations that returns these. Default: a
            handful spread over the run, by crash, signal, leaving and error in turn, and one run interrupted at
            all of them.
        examples: ``None`` for these; a number for as many examples by Hypothesis of up to three stops of any kind
            (about seven in a second for a small perceptron on one core).
        run_keywords: passed on to `helios_fn.run`.

    Raises:
        LawBroken: a resumed run differs, or fails; says where first, and what a closer look shows of the causes.
        JobFailed: the job fails without any interruption; its error is the cause.
        ValueError: a stop is outside the run, or both ``stops`` and ``examples`` are given.
    """
    check_count(examples)
    if stops is not None and examples is not None:
        raise ValueError("give stops or examples, not both: stops are those to try, examples are generated")
    job = Job(step, state, loader, cfg, run_keywords)
    with closer_look(job) as tried:
        whole = whole_run(job)
        last = len(whole.batches)
        every = max(2, -(-last // _SAVES))

        def holds(schedule: Sequence[Stop]) -> None:
            points = ", ".join(map(str, schedule))
            tried.runs = (job, []), (job, [*schedule])
            what = f"a run resumed after {points} differs from one never stopped" if points else "two runs differ"
            assert_same_run(whole, _resumed(job, [*schedule], points, every), what)

        if examples is not None:
            from .strategies import interruptions

            for_all(interruptions(last), holds, examples)
            return
        for schedule in _usual_schedules(last) if stops is None else schedules(stops, last):
            holds(schedule)


def check_workers(
    step: Callable[[Any, Any], Any],
    state: Any,
    make_loader: Callable[[int], Any],
    cfg: RunConfig,
    *,
    workers: Sequence[int] = (0, 1, 2),
    examples: int | None = None,
    **run_keywords: Any,
) -> None:
    """Check that the number of loader workers changes no bit, and may change when a run is resumed.

    Args:
        make_loader: ``make_loader(workers)`` makes the loader with that many workers.
        workers: the numbers to compare with the first of them.
        examples: ``None`` for one run with each number and one that changes it at each resume; a number for as many
            examples by Hypothesis of interruptions and of the numbers between them (about three in a second).

    Raises:
        LawBroken: a run differs; says where first, and what a closer look shows of the causes.
        JobFailed: the job fails with the first number of workers.
    """
    check_count(examples)
    first, *others = workers
    job = Job(step, state, lambda: make_loader(first), cfg, run_keywords)
    with closer_look(job):
        whole = whole_run(job)

        def holds(stops: Sequence[Stop], numbers: Sequence[int]) -> None:
            cycle = itertools.cycle(numbers)
            changing = dataclasses.replace(job, loader=lambda: make_loader(next(cycle)))
            what = (
                f"a run with {', '.join(map(str, numbers))} workers in turn, resumed after {len(stops)} stops, differs"
            )
            assert_same_run(whole, run_with(changing, [*stops]), what)

        if examples is not None:
            _check_drawn(holds, len(whole.batches), workers, examples)
            return
        for number in others:
            other = run_with(dataclasses.replace(job, loader=lambda n=number: make_loader(n)), [])
            assert_same_run(whole, other, f"a run with {number} workers differs from one with {first}")
        holds([Stop(at) for at in spread(len(whole.batches), most=len(workers))], workers)


def _check_drawn(
    holds: Callable[[Sequence[Stop], Sequence[int]], None], last: int, workers: Sequence[int], examples: int
) -> None:
    from hypothesis import strategies as st

    from .strategies import interruptions

    numbers = st.lists(st.sampled_from([*workers]), min_size=1, max_size=len(workers))
    for_all(st.tuples(interruptions(last), numbers), lambda drawn: holds(*drawn), examples)


def whole_run(job: Job, root: Path | None = None) -> Trace:
    """The run of a job that nothing interrupts.

    Raises:
        LawBroken: the step is not pure.
        JobFailed: the job fails; its error is the cause.
    """
    try:
        return run_with(job, [], root)
    except Exception as error:
        if isinstance(error.__cause__, PurityError):
            raise LawBroken(f"the step is not pure: {error}") from error
        raise JobFailed(f"the job itself failed, without any interruption: {error}") from error


def _resumed(job: Job, stops: list[Stop], what: str, every: int) -> Trace:
    try:
        return run_with(job, stops, every=every)
    except Exception as error:
        raise LawBroken(
            f"a run interrupted by {what} fails when it is resumed; without it does not: {error}"
        ) from error


def _usual_schedules(last: int) -> list[list[Stop]]:
    """Each usual stop alone, and all in one run; where a run is too short for any, just the run once more."""
    single = usual_stops(last)
    return [[stop] for stop in single] + ([single] if len(single) != 1 else [])
