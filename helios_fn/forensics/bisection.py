"""Which iteration made two runs part, and which of them was disturbed, by executing what lies between again."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..types import Fingerprint, Row
from .comparison import Comparison, Witness, compare, differing, differing_states, other_metrics
from .evidence import By, Evidence
from .rerun import JobLike, Moment, find_job, moments

Disturbed: TypeAlias = Literal["left", "right", "both", "neither"]
_DISTURBED: Mapping[tuple[bool, bool], Disturbed] = {
    (True, False): "left",
    (False, True): "right",
    (True, True): "both",
    (False, False): "neither",
}
_MICRO_BATCH = re.compile(r"micro-batch (\d+)")


@dataclasses.dataclass(frozen=True)
class Departure:
    """Where one run leaves what was executed again.

    Attributes:
        agrees: the last iteration at which it agrees, and by what that is known.
        departs: the first one at which it does not; ``None`` if it agrees throughout.
        leaves: the leaves of the state that differ there.
        batch: the leaves of the batch that differ.
        metrics: the names of the metrics that differ.
    """

    agrees: Witness
    departs: Witness | None = None
    leaves: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether it is exactly that iteration."""
        return self.departs is not None and self.agrees.iteration + 1 == self.departs.iteration


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What came of executing again.

    Attributes:
        comparison: what the two runs tell by themselves.
        start: the checkpoint from which it was done; ``None`` where the runs do not differ.
        left, right: where each run leaves the execution. With two jobs ``right`` is where the second execution leaves
            the first, and ``left`` says nothing.
        disturbed: which of the runs the execution does not agree with; ``None`` with two jobs, and where there
            was nothing to do.
        micro_steps: the micro-batches of the job, numbered from 0, whose batches differ where they part.
    """

    comparison: Comparison
    start: Checkpoint | None = None
    left: Departure | None = None
    right: Departure | None = None
    disturbed: Disturbed | None = None
    micro_steps: tuple[int, ...] = ()


def bisect(
    left: Path | str | Evidence,
    right: Path | str | Evidence,
    job: JobLike = None,
    other: JobLike = None,
    *,
    discover: bool | Iterable[str] = (),
) -> Bisection:
    """Execute what lies between the last common state of two runs and their first difference again.

    With one job, each iteration of it is held against all that both runs have logged and saved, which tells which of
    the two was disturbed, and where: exactly with ``fingerprint_every=1``, else between two iterations.

    With two, both are executed side by side from that state, and compared after each iteration: so the exact iteration
    is found at which two versions of a program part, whatever they have logged.

    Args:
        left, right: roots of runs, or what `gather` found in them.
        job: what they are made of: a `helios_fn.testing.Job`, its name, or ``None`` for the experiment that the
            checkpoint records.
        other: that of the second run, where it is another.
        discover: for experiments, as for `helios_fn.load_run`.

    Raises:
        CheckpointError: there is no checkpoint at which both are known to be equal.
        ResumeRefused: the checkpoint does not belong to the job.
        ValueError: the job cannot be found, or ends before the difference.
        RunFailed: the job fails.
    """
    comparison = compare(left, right)
    if comparison.different is None:
        return Bisection(comparison)
    here, there = comparison.left, comparison.right
    start = _start(comparison)
    until = (comparison.leaves_at or comparison.different).iteration
    again = moments(find_job(job, here, discover=discover), start)
    with contextlib.closing(again):
        if other is not None:
            second = moments(find_job(other, there, discover=discover), start)
            with contextlib.closing(second):
                return _side_by_side(Bisection(comparison, start), again, second, until)
        left_side, right_side, micro_steps = _held_against(again, start, here, there, until)
    disturbed = _DISTURBED[left_side.departs is not None, right_side.departs is not None]
    return Bisection(comparison, start, left_side, right_side, disturbed, micro_steps)


def _held_against(
    again: Iterable[Moment], start: Checkpoint, here: Evidence, there: Evidence, until: int
) -> tuple[Departure, Departure, tuple[int, ...]]:
    """Where each of two runs leaves an execution, and the micro-steps whose batches differ where one first does."""
    left = right = Departure(Witness(start.iteration, "checkpoint"))
    micro_steps: tuple[int, ...] = ()
    for moment in again:
        if moment.fingerprint is None:
            continue
        first = left.departs is None and right.departs is None
        left, right = _judged(left, here, moment), _judged(right, there, moment)
        if first:
            micro_steps = _micro_steps(moment.fingerprint, {*left.batch, *right.batch})
        if moment.fingerprint.iteration >= until or (left.departs and right.departs):
            return left, right, micro_steps
    raise ValueError(f"the job ends before iteration {until}, at which the runs differ: is it the right one?")


def _start(found: Comparison) -> Checkpoint:
    """The last checkpoint of either run at which both are known to be equal."""
    for iteration in reversed(found.equal_at):
        for side in (found.left, found.right):
            if iteration in side.checkpoints:
                return side.checkpoints[iteration]
    raise CheckpointError(
        f"{found.left.root} and {found.right.root} have no common state in a checkpoint before iteration "
        f"{found.different.iteration if found.different else 0}: there is nothing to execute again from"
    )


def _judged(side: Departure, evidence: Evidence, moment: Moment) -> Departure:
    """What is known of a run, with one more iteration held against it."""
    again = moment.fingerprint
    if side.departs is not None or again is None:
        return side
    logged, known = evidence.fingerprints.get(again.iteration), evidence.at(again.iteration)
    batch = () if logged is None else differing(again.batch, logged.batch)
    leaves = () if known is None else differing_states(("fingerprint", dict(again.state)), known)
    metrics = _other_names(moment.rows, evidence, again.iteration)
    by: By = "metrics" if known is None else "fingerprint" if logged else "checkpoint"
    here = Witness(again.iteration, by if batch or leaves or not metrics else "metrics")
    if batch or leaves or metrics:
        return dataclasses.replace(side, departs=here, leaves=leaves, batch=batch, metrics=metrics)
    return side if known is None else dataclasses.replace(side, agrees=here)


def _other_names(rows: Mapping[str, Row], evidence: Evidence, iteration: int) -> tuple[str, ...]:
    pairs = [other_metrics(row, evidence.rows.get((kind, iteration))) for kind, row in rows.items()]
    return tuple(pair.name for found in pairs for pair in found)


def _side_by_side(found: Bisection, one: Iterable[Moment], other: Iterable[Moment], until: int) -> Bisection:
    start = found.start
    assert start is not None
    side = Departure(Witness(start.iteration, "checkpoint"))
    for here, there in zip(one, other, strict=False):
        mine, theirs = here.fingerprint, there.fingerprint
        if mine is None or theirs is None:
            continue
        batch, leaves = differing(mine.batch, theirs.batch), differing(mine.state, theirs.state)
        if batch or leaves:
            departs = Witness(mine.iteration, "fingerprint")
            side = dataclasses.replace(side, departs=departs, leaves=leaves, batch=batch)
            return dataclasses.replace(found, right=side, micro_steps=_micro_steps(mine, batch))
        side = dataclasses.replace(side, agrees=Witness(mine.iteration, "fingerprint"))
        if mine.iteration >= until:
            break
    return dataclasses.replace(found, right=side)


def _micro_steps(at: Fingerprint, differing: Collection[str]) -> tuple[int, ...]:
    """The numbers, over the whole job, of the micro-batches of an iteration that have one of these paths."""
    count = len({_number(path) for path in at.batch})
    return tuple(at.micro_step - count + number for number in sorted({_number(path) for path in differing}))


def _number(path: str) -> int:
    """The number of a micro-batch within its iteration, from the path of a leaf; 0 where it is the only one."""
    found = _MICRO_BATCH.match(path)
    return int(found[1]) if found else 0
