"""The law of the world: the number of processes changes no bit, and may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..distributed import launch
from ..errors import LaunchFailed, PurityError, RunFailed
from .compare import assert_same_run
from .interrupt import Stop, spread
from .spec import load_job, split_spec
from .trace import Trace, logged_rows, run_leg
from .verdicts import JobFailed, LawBroken


def check_world(spec: str, *, processes: Sequence[int] = (1, 2, 4)) -> None:
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

    Raises:
        LawBroken: a run differs, or fails with another number of processes; says where first, and the likely causes.
        JobFailed: the job fails with the first number of processes; has the traceback.
        ValueError: ``spec`` is not of this form, or there is nothing to compare.
    """
    split_spec(spec)
    if len({*processes}) < 2 or not all(type(count) is int and count >= 1 for count in processes):
        raise ValueError(f"processes must hold at least two different numbers of processes, got {tuple(processes)}")
    first, *others = dict.fromkeys(processes)
    whole = _run(spec, [_Leg(first)], None)
    for count in others:
        what = f"a run of {_counted(count)} differs from one of {_counted(first)}"
        assert_same_run(whole, _run(spec, [_Leg(count)], first), what)
    legs = _elastic(sorted({*processes}, reverse=True), len(whole.batches))
    if len(legs) > 1:
        course = ", ".join(f"{_counted(leg.processes)} up to iteration {leg.until}" for leg in legs[:-1])
        course += f", then {_counted(legs[-1].processes)}"
        assert_same_run(whole, _run(spec, legs, first), f"a run of {course}, differs from one of {_counted(first)}")


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
    """So many processes until all leave after an iteration, or to the end."""

    processes: int
    until: int | None = None


def _elastic(processes: list[int], last: int) -> list[_Leg]:
    stops = [*spread(last, most=len(processes) - 1)]
    return [*map(_Leg, processes, stops), _Leg(processes[-1])]


def _run(spec: str, legs: list[_Leg], known: int | None) -> Trace:
    """Run a job to its end; ``known`` is the number of processes with which it does not fail, if there is one."""
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        for number, leg in enumerate(legs, start=1):
            try:
                parts = launch(_take_part, spec, folder, leg.until, number, processes=leg.processes)
            except LaunchFailed as error:
                raise _failed(leg, error, known) from error
            if isinstance(parts[0], str):
                raise LawBroken(f"{_counted(leg.processes)}: {parts[0]}")
            take_in(trace, joined(parts))
        trace.rows = logged_rows(Path(folder))
    return trace


def _take_part(spec: str, root: str, until: int | None, ambient: int) -> Trace | str:
    """One rank of one leg: what it did, or what all ranks have found to be impure."""
    job = load_job(spec).in_root(root)
    if job.cfg.micro_batches is None:
        raise ValueError("the law holds for a fixed number of micro-batches per iteration: set micro_batches in cfg")
    # Told by the leaf, and before anything else goes wrong.
    job = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, check_replicas_every=1))
    trace = Trace()
    try:
        result = run_leg(job, None if until is None else Stop(until, "leave"), ambient, trace)
    except RunFailed as error:
        if isinstance(error.__cause__, PurityError):
            return str(error.__cause__)
        raise
    return trace if result is None else trace.ended(result)


def _failed(leg: _Leg, error: LaunchFailed, known: int | None) -> Exception:
    if known is None:
        return JobFailed(f"the job itself failed, with {_counted(leg.processes)}:\n{error}")
    return LawBroken(f"the job fails with {_counted(leg.processes)}; with {known} it does not:\n{error}")


def _counted(processes: int) -> str:
    return f"{processes} process{'es' * (processes != 1)}"
