"""Executing a part of a run again, from one of its checkpoints, without touching its folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch

from .. import driver, schedule, tree
from ..checkpoint import Checkpoint
from ..checkpoint import format as checkpoints
from ..config import Every, RunConfig
from ..data import as_source
from ..driver.amount import limited_source, limited_validation
from ..driver.batches import to_device
from ..driver.record import check_resumable, environment, geometry
from ..experiment import Experiment, load_run
from ..state import OUTPUT_ONLY, TrainState
from ..testing import Job
from ..testing.spec import load_job
from ..types import Fingerprint, Json, Row, RunInfo
from .evidence import Evidence

_LOGGER = logging.getLogger("helios_fn")
_KEPT = ("validate", "should_stop", "pass_through")
JobLike: TypeAlias = Job | str | None


class Moment(NamedTuple):
    """An iteration that was executed again: the state after it, its rows by kind, and its fingerprint.

    Of several processes rank 0 alone knows the last two; ``fingerprint`` is ``None`` elsewhere.
    """

    state: TrainState
    rows: dict[str, Row]
    fingerprint: Fingerprint | None


def find_job(job: JobLike, run: Evidence, *, discover: bool | Iterable[str] = (), device: Any = None) -> Job:
    """The job that a run is made of: itself, by its name ``module:function``, or from the experiment that it records.

    Args:
        job: the job, its name, or ``None``.
        run: what its folder tells.
        discover: for an experiment, as for `helios_fn.load_run`.
        device: where to compute instead, if given.

    Raises:
        ValueError: there is no such job, or a part of the experiment is not registered.
        CheckpointError: ``job`` is ``None`` and the run was not started from an experiment.
    """
    found = load_job(job) if isinstance(job, str) else job
    if found is None:
        built = load_run(run.root, discover=discover, name=run.name)
        if device is not None:
            text = built.experiment.dumps()
            built = Experiment.loads(text, {"run.device": str(device)}, name=f"the experiment of {run.root}").build(
                discover=False
            )
        keywords = {} if built.validate is None else {"validate": built.validate}
        found = Job(built.step, built.state, built.loader, built.config, keywords)
    if device is None:
        return found
    return dataclasses.replace(
        found,
        state=_moved(found.initial_state(), torch.device(device)),
        cfg=dataclasses.replace(found.cfg, device=str(device)),
    )


def moments(
    job: Job, start: Checkpoint, *, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda step: step
) -> Generator[Moment, None, None]:
    """The iterations after a checkpoint, executed again with the same batches and noise; the first one is its state.

    Args:
        job: what the run was made of.
        start: one of its checkpoints.
        wrap: given the step, returns what is called in its place.

    Raises:
        ResumeRefused: the checkpoint belongs to another job.
        RunFailed: the job fails.
    """
    fresh, loader = job.initial_state(), job.new_loader()
    cfg = _quiet(job.cfg, start)
    data = limited_source(as_source(loader), cfg).describe()
    validate = limited_validation(job.keywords.get("validate"), cfg)
    facts: dict[str, Json] = {
        "geometry": geometry(cfg, schedule.share_of(cfg), data, fresh, validate),
        "environment": environment(cfg, job.step),
    }
    for warning in check_resumable(start.record, facts, f"checkpoint {start.path}"):
        _LOGGER.warning("%s", warning)
    state = checkpoints.load(start.path, start.manifest, fresh, free=OUTPUT_ONLY)
    yield Moment(state, {}, None)
    catcher = _Catcher()
    keywords = {name: value for name, value in job.keywords.items() if name in _KEPT}
    states = driver.iterate(wrap(job.step), state, loader, cfg, sinks=[catcher], **keywords)
    try:
        for after in states:
            yield Moment(after, *catcher.caught(after.counters.iteration))
    finally:
        states.close()


def _quiet(cfg: RunConfig, start: Checkpoint) -> RunConfig:
    """The same run with its mathematics, in memory alone, and with everything logged."""
    facts = start.record.get("geometry")
    saved = facts.get("micro_batches") if isinstance(facts, dict) else None
    # A default follows the number of processes, which may be another here.
    default = saved if cfg.micro_batches is None and isinstance(saved, int) else None
    return dataclasses.replace(
        cfg,
        accumulation_steps=1 if default else cfg.accumulation_steps,
        micro_batches=default or cfg.micro_batches,
        log_every=Every(1, "iteration"),
        fingerprint_every=Every(1, "iteration"),
        sanity_batches=0,
        checkpoint_every=None,
        checkpoint_every_seconds=None,
        retention=None,
        root=None,
        resume="auto",
        max_time=None,
        progress=False,
        donate=False,
        # Going back needs checkpoints; an iteration that would have been passed over is one to look at.
        non_finite="raise" if cfg.non_finite == "rollback" else cfg.non_finite,
    )


class _Catcher:
    """A sink that keeps what belongs to the last iteration."""

    name = "forensics"

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._print: Fingerprint | None = None

    def open(self, info: RunInfo, mark: Json) -> None:
        """Nothing to open."""

    def write(self, row: Row) -> None:
        """Keep a row."""
        self._rows[row.kind] = row

    def write_fingerprint(self, found: Fingerprint) -> None:
        """Keep a fingerprint."""
        self._print = found

    def flush(self) -> Json:
        """Nothing to flush."""
        return None

    def close(self) -> None:
        """Nothing to close."""

    def caught(self, iteration: int) -> tuple[dict[str, Row], Fingerprint | None]:
        """The rows and the fingerprint of an iteration."""
        rows = {kind: row for kind, row in self._rows.items() if row.iteration == iteration}
        return rows, self._print


def _moved(state: TrainState, device: torch.device) -> TrainState:
    """A state to train on another device.

    Parameters, buffers and all other tensors with dimensions move. Counts and hyperparameters, which have none, and
    the key stay on the host, where helios_fn and torch's optimisers keep them.
    """

    def move(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 else leaf

    moved = {name: tree.map(move, getattr(state, name)) for name in ("opt_state", "averages", "extra")}
    modules = {name: to_device(getattr(state, name), device) for name in ("params", "buffers")}
    return state.replace(**moved, **modules)
