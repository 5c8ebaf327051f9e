"""The law of counting: cursor and counters are those of a plain walk through the data, and the end is an end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import schedule, tree
from ..config import RunConfig
from ..data import Phases, as_source
from ..types import Counters, Cursor, MicroBatches, Reason
from .examples import check_count, for_all
from .folders import temporary_folder
from .laws import whole_run
from .look import closer_look
from .trace import Job, Trace, run_with
from .verdicts import LawBroken

_CAUSES = """The driver counts by what the loader delivers, so look there if it is a Source of your own: each Delivery
says how many micro-batches the iteration consumes and the cursor after it, which reads (epoch + 1, 0) after the last
batch of an epoch, and batches_per_epoch must say how many there are."""
_END = """What ends a run must depend on the state alone, and still hold when it is asked again: look at should_stop
(a clock, a counter of its own calls, a file) and at the improved function of early_stop."""


def check_counting(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    examples: int | None = None,
    **run_keywords: Any,
) -> None:
    """Check that cursor and counters agree with a plain model, and that a finished run trains nothing more.

    The model walks through the epochs batch by batch. After each iteration the state must be where the model is;
    the run must end where ``cfg`` says, unless something stops it earlier; and started again in its root, it must find
    itself finished: the same state, the same log, no batch.

    Args:
        step, state, loader, cfg, run_keywords: as for `helios_fn.run`; keep ``cfg.total`` small. Runs are in temporary
            folders.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about eight in a second
            for a small perceptron on one core), with other units, totals and cadences, and
            other accumulations where the job accumulates.

    Raises:
        LawBroken: says after which iteration what is counted wrong, or what a finished run did.
        JobFailed: the job fails.
    """
    check_count(examples)
    job = Job(step, state, loader, cfg, run_keywords)
    with closer_look(job):
        if examples is None:
            _check(job)
            return
        from .strategies import run_configs

        def holds(drawn: RunConfig) -> None:
            names = ["unit", "total", "reduction", "log_every"]
            if accumulates:  # else the step may be one that takes single batches
                names.append("accumulation_steps")
            changed = {name: getattr(drawn, name) for name in names}
            _check(dataclasses.replace(job, cfg=dataclasses.replace(cfg, micro_batches=None, **changed)))

        accumulates = schedule.share_of(cfg).micro_batches > 1

        endless = batches_per_epoch(job) is None
        for_all(run_configs(max_total=6, units=("iteration",) if endless else ("iteration", "epoch")), holds, examples)


def _check(job: Job) -> None:
    states: list[Any] = []

    def noting(state: Any, batch: Any) -> Any:
        states.append((state.cursor, state.counters, len(batch.items) if isinstance(batch, MicroBatches) else 1))
        return job.step(state, batch)

    with temporary_folder() as folder:
        root = Path(folder)
        first = whole_run(dataclasses.replace(job, step=noting), root)
        _check_course(job, states, first)
        again = run_with(job, [], root)
    _check_end(job, first)
    if again.batches:
        raise LawBroken(
            f"a finished run ({first.reason.value if first.reason else 'it never ended'}) trained {len(again.batches)} "
            f"iterations more when it was started again\n{_END}"
        )
    lines = tree.diff(first.state, again.state)
    if lines or first.rows != again.rows or first.reason is not again.reason:
        told = lines[0] if lines else f"log rows or reason ({first.reason}, {again.reason})"
        raise LawBroken(f"a finished run is not what it was when it is started again: {told}\n{_END}")


def _check_course(job: Job, states: list[Any], trace: Trace) -> None:
    share = schedule.share_of(job.cfg)
    per_epoch = batches_per_epoch(job)
    walk = _walk(per_epoch, share.unit, share.micro_batches)
    for iteration, (cursor, counters, items) in enumerate(states):
        at, done, size = next(walk)
        if isinstance(job_loader(job), Phases):
            at, done, size = cursor, Counters(iteration, counters.micro_step), items  # phases end when they say
        if per_epoch is None:
            at, size = cursor, items if job.cfg.unit == "iteration" else size
        found, expected = (cursor.epoch, cursor.batch, items), (at.epoch, at.batch, size)
        if found != expected or counters != done:
            raise LawBroken(
                f"before iteration {iteration + 1} the run is at epoch {found[0]}, batch {found[1]}, with {counters}, "
                f"and consumes {items} micro-batches; by a plain count it is at epoch {expected[0]}, batch "
                f"{expected[1]}, with {done}, and consumes {size}\n{_CAUSES}"
            )
    if trace.state.counters.iteration != len(trace.batches):
        raise LawBroken(
            f"{len(trace.batches)} iterations were trained, and {trace.state.counters} are counted\n{_CAUSES}"
        )


def _check_end(job: Job, trace: Trace) -> None:
    state, cfg = trace.state, job.cfg
    done = state.counters.iteration if cfg.unit == "iteration" else state.cursor.epoch
    if trace.reason is Reason.TOTAL and done != cfg.total:
        raise LawBroken(f"the run ended after {done} {cfg.unit}s; the total is {cfg.total}\n{_CAUSES}")


def _walk(per_epoch: int | None, unit: str, size: int) -> Iterator[tuple[Cursor, Counters, int]]:
    """Where each iteration begins and how many micro-batches it takes, batch by batch."""
    epoch = batch = micro_step = iteration = 0
    while True:
        at, done, taken = Cursor(0, epoch, batch), Counters(iteration, micro_step), 0
        while taken < size:
            taken, batch = taken + 1, batch + 1
            if batch == per_epoch:
                epoch, batch = epoch + 1, 0
                if unit == "epoch":
                    break
        yield at, done, taken
        iteration, micro_step = iteration + 1, micro_step + taken


def job_loader(job: Job) -> Any:
    """What the job reads from, to be looked at and not to be opened."""
    return as_source(job.new_loader())


def batches_per_epoch(job: Job) -> int | None:
    """How many batches an epoch of the first phase has; ``None`` for a stream."""
    source = job_loader(job)
    return (source.source(0) if isinstance(source, Phases) else source).batches_per_epoch
