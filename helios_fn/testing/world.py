"""The law of the world: the number of processes changes no bit, and may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import RunConfig
from ..distributed import launch
from ..errors import LaunchFailed, PurityError, RunFailed
from .compare import assert_same_run
from .examples import check_count, for_all
from .folders import temporary_folder
from .interrupt import Stop, spread
from .look import closer_look
from .pool import Worlds
from .spec import load_job, split_spec
from .trace import Trace, logged_rows, run_leg
from .verdicts import JobFailed, LawBroken

_MOST_CHANGES = 2


def check_world(spec: str, *, processes: Sequence[int] = (1, 2, 4), examples: int | None = None) -> None:
    """Check that the number of processes that share a job changes no bit of it.

    The job runs once with each number of processes of this machine, and once more with the largest number first, from
    where the others go on in turn, down to the smallest. All of these runs must have the same batches, log rows,
    final state and reason. Processes talk over gloo, so a job on the CPU is what can be checked anywhere; runs are
    in temporary folders, and the job's own root is not touched.

    The law holds where ``cfg.micro_batches`` is set, which fixes what an iteration is, and ``cfg.reduction`` is
    ``"tree"``.

    Args:
        spec: ``"module:function"``, as for `check_resume_processes`; called in each process.
        processes: the numbers to compare with the first of them; none may exceed ``cfg.micro_batches``.
        examples: ``None`` for these runs; a number for as many examples by Hypothesis (about two in a second for a
            small perceptron on two cores) of runs in up to three worlds, with any of ``processes`` in each, from one to
            the next by leaving or by a crash after any iteration. The processes stay from one example to the next, so
            what a job keeps in them is not lost as it is in the runs above.

    Raises:
        LawBroken: a run differs, or fails with another number of processes; says where first, and the likely causes.
        JobFailed: the job fails with the first number of processes; has the traceback.
        ValueError: ``spec`` is not of this form, or there is nothing to compare.
    """
    check_count(examples)
    split_spec(spec)
    if len({*processes}) < 2 or not all(type(count) is int and count >= 1 for count in processes):
        raise ValueError(f"processes must hold at least two different numbers of processes, got {tuple(processes)}")
    numbers = [*dict.fromkeys(processes)]
    try:
        if examples is None:
            _check_all(spec, numbers)
        else:
            _check_drawn(spec, numbers, examples)
    except LawBroken as error:
        _look_closer(spec, error)


def unshared(cfg: RunConfig) -> str | None:
    """Why the law says nothing about a configuration; ``None`` where it does."""
    if cfg.micro_batches is None or cfg.reduction != "tree":
        return (
            "the law holds for a fixed number of micro-batches per iteration that are summed as a tree: set "
            "micro_batches in cfg, and leave its reduction as it is"
        )
    if cfg.micro_batches < 2:
        return "an iteration of one micro-batch cannot be shared: set micro_batches in cfg to 2 or more"
    return None


def _check_all(spec: str, numbers: list[int]) -> None:
    """Each number, and from the largest to the smallest; each part of a run in processes of its own."""
    first, *others = numbers
    whole = _run(spec, [_Leg(first)], None)
    for count in others:
        _compare(whole, _run(spec, [_Leg(count)], first), [_Leg(count)], first)
    falling = sorted(numbers, reverse=True)
    stops = [Stop(at, "leave") for at in spread(len(whole.batches), most=len(falling) - 1)]
    if stops:
        legs = [*map(_Leg, falling, stops), _Leg(falling[-1])]
        _compare(whole, _run(spec, legs, first), legs, first)


def _check_drawn(spec: str, numbers: list[int], examples: int) -> None:
    from hypothesis import strategies as st

    from .strategies import interruptions

    with Worlds() as worlds:
        whole = _run(spec, [_Leg(numbers[0])], None, worlds)
        stops = interruptions(max(1, len(whole.batches) - 1), most=_MOST_CHANGES, kinds=("leave", "crash"))
        sizes = st.lists(st.sampled_from(numbers), min_size=2, max_size=_MOST_CHANGES + 1)
        courses = st.tuples(stops, sizes).map(lambda drawn: [*map(_Leg, itertools.cycle(drawn[1]), [*drawn[0], None])])
        for_all(
            courses,
            lambda legs: _compare(whole, _run(spec, legs, numbers[0], worlds), legs, numbers[0]),
            examples,
        )


def _compare(whole: Trace, other: Trace, legs: Sequence[_Leg], first: int) -> None:
    comma = "," if len(legs) > 1 else ""
    assert_same_run(whole, other, f"a run of {_in_words(legs)}{comma} differs from one of {counted(first)}")


def _look_closer(spec: str, error: LawBroken) -> None:
    """Raise the verdict again, with what can be seen of the cause in this process, where the job is made anew."""
    try:
        job = load_job(spec)
    except Exception:
        raise error from error.__cause__
    with closer_look(job):
        raise error from error.__cause__


def joined(parts: Sequence[Trace]) -> Trace:
    """What the processes of one leg did, by rank, as the trace of one process that has done it all.

    Raises:
        LawBroken: they do not even agree with each other.
    """
    main = parts[0]
    found = Trace(starts=list(main.starts), metrics=dict(main.metrics), final=main.final, reason=main.reason)
    # Where a process was stopped in an iteration that others had not begun, nobody has seen all of it.
    for iteration in sorted(set(main.batches).intersection(*(part.batches for part in parts))):
        found.batches[iteration] = {path: kind for part in parts for path, kind in part.batches[iteration].items()}
    for rank, part in enumerate(parts):
        own = dataclasses.replace(part, batches={}, starts=[], rows=[])
        assert_same_run(
            dataclasses.replace(main, batches={}, starts=[], rows=[]), own, f"rank {rank} is not like rank 0"
        )
    return found


def take_in(trace: Trace, leg: Trace) -> None:
    """Append what was done in one more leg."""
    for start in leg.starts:
        trace.note_start(start)
    for iteration, batch in leg.batches.items():
        trace.note_batch(iteration, batch)
    for iteration, metrics in leg.metrics.items():
        trace.note_metrics(iteration, metrics)
    trace.final, trace.reason = leg.final, leg.reason


class _Leg(NamedTuple):
    """So many processes until all stop, or to the end."""

    processes: int
    stop: Stop | None = None

    def __str__(self) -> str:
        if self.stop is None:
            return counted(self.processes)
        how = "" if self.stop.kind == "leave" else f" ({self.stop.kind})"
        return f"{counted(self.processes)} up to iteration {self.stop.iteration}{how}"


def _in_words(legs: Sequence[_Leg]) -> str:
    return ", then ".join(map(str, legs))


def _run(spec: str, legs: Sequence[_Leg], known: int | None, call: Callable[..., list[Any]] = launch) -> Trace:
    """Run a job to its end; ``known`` is the number of processes with which it does not fail, if there is one."""
    trace = Trace()
    with temporary_folder() as folder:
        for number, leg in enumerate(legs, start=1):
            try:
                parts = call(_take_part, spec, folder, leg.stop, number, processes=leg.processes)
            except LaunchFailed as error:
                raise _failed(legs[:number], error, known) from error
            if isinstance(parts[0], str):
                raise LawBroken(f"{_in_words(legs[:number])}: {parts[0]}")
            try:
                take_in(trace, joined(parts))
            except LawBroken as error:
                raise LawBroken(f"{_in_words(legs[:number])}: {error}") from None
        trace.rows = logged_rows(Path(folder))
    return trace


def _take_part(spec: str, root: str, stop: Stop | None, ambient: int) -> Trace | str:
    """One rank of one leg: what it did, or what all ranks have found to be impure."""
    job = load_job(spec).in_root(root)
    if job.cfg.micro_batches is None:
        raise ValueError("the law holds for a fixed number of micro-batches per iteration: set micro_batches in cfg")
    # Told by the leaf, and before anything else goes wrong.
    job = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, check_replicas_every=1))
    trace = Trace()
    try:
        result = run_leg(job, stop, ambient, trace)
    except RunFailed as error:
        if isinstance(error.__cause__, PurityError):
            return str(error.__cause__)
        raise
    return trace if result is None else trace.ended(result)


def _failed(legs: Sequence[_Leg], error: LaunchFailed, known: int | None) -> Exception:
    if known is None:
        return JobFailed(f"the job itself failed, with {_in_words(legs)}:\n{error}")
    return LawBroken(f"the job fails with {_in_words(legs)}; with {known} it does not:\n{error}")


def counted(processes: int) -> str:
    """A number of processes in words."""
    return f"{processes} process{'es' * (processes != 1)}"
