"""One iteration of a run, executed again."""

from __future__ import annotations

import contextlib
import dataclasses
import pdb
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .. import tree
from ..checkpoint import Checkpoint
from ..dtensors import any_sharded
from ..errors import CheckpointError
from ..optim import global_norm
from ..state import TrainState
from ..types import Fingerprint
from .comparison import differing, differing_states, other_metrics
from .debugging import under_pdb
from .evidence import Evidence, gather
from .rerun import JobLike, Moment, find_job, moments

What: TypeAlias = Literal["metrics", "validation", "batch", "state"]


@dataclasses.dataclass(frozen=True)
class Check:
    """A part of the iteration held against what the run has recorded.

    Attributes:
        what: the part.
        by: where the run tells of it; ``None`` where it does not.
        differing: the metrics, or paths of leaves, that differ.
    """

    what: What
    by: str | None
    differing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """An iteration and what surrounds it.

    Attributes:
        iteration: which; it made the state whose ``counters.iteration`` is this number.
        start: the checkpoint from which the iterations before it were executed again.
        before, batch, after: what the step was given, and what it and the driver made of it. Of several processes each
            has its own part of the batch.
        metrics: of the step, by name.
        grad_norm: the norm of the gradients, before any clipping; ``None`` where the step is not of `make_step`.
        digest: `helios_fn.tree.digest` of ``after``; ``None`` of a sharded state.
        fingerprint: of this iteration; rank 0 alone has it.
        checks: what of it equals what the run has recorded.
    """

    iteration: int
    start: Checkpoint
    before: TrainState
    batch: Any
    after: TrainState
    metrics: dict[str, float]
    grad_norm: float | None
    digest: str | None
    fingerprint: Fingerprint | None
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool | None:
        """Whether all that the run has recorded of the iteration is equal; ``None`` if it has recorded nothing."""
        told = [check for check in self.checks if check.by is not None]
        return None if not told else not any(check.differing for check in told)


def replay(
    run: Path | str | Evidence,
    iteration: int,
    job: JobLike = None,
    *,
    device: Any = None,
    debug: bool | pdb.Pdb = False,
    discover: bool | Iterable[str] = (),
) -> Replay:
    """Execute one iteration of a run again, with the same batch and noise, and compare it with what was recorded.

        found = replay("runs/digits", 137, "my_project.train:job")
        found.before, found.batch, found.after  # what the step was given, and what came of it

    The iterations between the nearest checkpoint and this one are executed as well. In each process of a job (under
    `helios_fn.launch` or torchrun) it is called alike; with fixed ``micro_batches`` their number changes no bit.

    Args:
        run: the root of the run, or what `gather` found in it.
        iteration: from 1: the one that a row of this number tells of.
        job: what the run is made of: a `helios_fn.testing.Job`, its name, or ``None`` for the experiment that its
            checkpoints record.
        device: where to compute instead, such as ``"cpu"``; bits may then differ.
        debug: stop in pdb at the first line of the user's own code in the step of this iteration; or a debugger.
        discover: for experiments, as for `helios_fn.load_run`.

    Raises:
        CheckpointError: no checkpoint is as old as the iteration.
        ResumeRefused: the checkpoint does not belong to the job.
        ValueError: ``iteration`` is none, the job cannot be found, or it ends before.
        RunFailed: the job fails.
    """
    evidence = run if isinstance(run, Evidence) else gather(run)
    if type(iteration) is not int or iteration < 1:
        raise ValueError(f"iteration counts from 1, got {iteration!r}")
    older = [at for at in evidence.checkpoints if at < iteration]
    if not older:
        raise CheckpointError(f"{evidence.root} has no checkpoint from before iteration {iteration}")
    start = evidence.checkpoints[max(older)]
    held: list[Any] = []

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def called(state: Any, batch: Any) -> Any:
            if state.counters.iteration != iteration - 1:
                return step(state, batch)
            held[:] = [batch]
            if isinstance(debug, pdb.Pdb):
                return under_pdb(step, debug)(state, batch)
            return (under_pdb(step) if debug else step)(state, batch)

        return called

    found = find_job(job, evidence, discover=discover, device=device)
    again = moments(found, start, wrap=wrap)
    with contextlib.closing(again):
        before = next(again).state
        for moment in again:
            if moment.state.counters.iteration == iteration:
                return _replay(evidence, start, before, held[0], moment, _grad_norm(found.step, before, held[0]))
            before = moment.state
    raise ValueError(f"the job ends before iteration {iteration}, after {before.counters.iteration}")


def _replay(
    evidence: Evidence, start: Checkpoint, before: TrainState, batch: Any, moment: Moment, grad_norm: float | None
) -> Replay:
    after = moment.state
    iteration = after.counters.iteration
    return Replay(
        iteration,
        start,
        before,
        batch,
        after,
        metrics={name: float(value) for name, value in sorted(after.metrics.items())},
        grad_norm=grad_norm,
        digest=None if any_sharded(tree.leaves(after)) else tree.digest(after),
        fingerprint=moment.fingerprint,
        checks=tuple(_checks(evidence, moment, iteration)),
    )


def _grad_norm(step: Any, before: TrainState, batch: Any) -> float | None:
    gradients = getattr(step, "gradients", None)
    return float(global_norm(gradients(before, batch).grads)) if callable(gradients) else None


def _checks(evidence: Evidence, moment: Moment, iteration: int) -> Iterable[Check]:
    kinds: tuple[tuple[str, What], ...] = (("train", "metrics"), ("validation", "validation"))
    for kind, what in kinds:
        mine, logged = moment.rows.get(kind), evidence.rows.get((kind, iteration))
        if mine is not None:
            names = tuple(pair.name for pair in other_metrics(mine, logged))
            yield Check(what, None if logged is None else "log", names)
    again = moment.fingerprint
    if again is not None:
        logged_print, known = evidence.fingerprints.get(iteration), evidence.at(iteration)
        batch = () if logged_print is None else differing(again.batch, logged_print.batch)
        yield Check("batch", None if logged_print is None else "fingerprint", batch)
        state = () if known is None else differing_states(("fingerprint", dict(again.state)), known)
        yield Check("state", None if known is None else known[0], state)
