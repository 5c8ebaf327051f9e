"""Some iterations of a run in a world of another size, noted by each rank so that a plain model can be compared."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from .. import driver, random
from ..config import Every
from ..errors import PurityError, RunFailed
from ..types import Observer, Reason, Result
from .interrupt import Crash
from .model import Place
from .spec import Subject, load_job
from .trace import Job
from .world import unshared

Ending: TypeAlias = Literal["leave", "crash"]


class Errand(NamedTuple):
    """What a world is to do with a run.

    Attributes:
        spec: where its ranks find the job.
        root: of the run.
        log: cadence of the log; likewise ``checkpoint``.
        iterations: how many to train, unless the run ends before.
        ending: how to end it then.
        ambient: seed of the global generators.
    """

    spec: str
    root: str
    log: Every
    checkpoint: Every
    iterations: int
    ending: Ending
    ambient: int


class Passage(NamedTuple):
    """What one rank did.

    Attributes:
        places: where the run was at the start, and after each iteration.
        saved: the last iteration of which a checkpoint was complete; -1 if none was.
        reason: why the run ended; ``None`` if it was left before.
        impure: what all ranks have found to be impure, if anything.
    """

    places: Sequence[Place]
    saved: int
    reason: Reason | None
    impure: str | None = None


def sizes_to_draw(job: str | Job, worlds: Sequence[int]) -> list[int]:
    """The sizes of worlds but for one process alone, which needs no others.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is less than 1, more than there are micro-batches to share, or the job cannot be shared.
    """
    if not all(type(size) is int for size in worlds):
        raise TypeError(f"worlds must hold numbers of processes, got {tuple(worlds)}")
    if not worlds or min(worlds) < 1:
        raise ValueError(f"worlds must hold numbers of processes, from 1 on, got {tuple(worlds)}")
    sizes = [size for size in dict.fromkeys(worlds) if size > 1]
    if not sizes:
        return []
    cfg = load_job(Subject(job if isinstance(job, str) else lambda: job).spec()).cfg
    reason = unshared(cfg)
    if reason is not None:
        raise ValueError(f"the world of this job cannot be changed: {reason}")
    if max(sizes) > (cfg.micro_batches or 1):
        raise ValueError(
            f"worlds has {max(sizes)} processes, and an iteration only {cfg.micro_batches} micro-batches to share"
        )
    return sizes


def carry_on(errand: Errand) -> Passage:
    """Start or resume the run as one rank of a world, and train."""
    placed = load_job(errand.spec).in_root(errand.root)
    # Replicas that part are told by the leaf, and before anything else goes wrong.
    cfg = dataclasses.replace(
        placed.cfg, log_every=errand.log, checkpoint_every=errand.checkpoint, check_replicas_every=1
    )
    noted = _Noting()
    keywords = {**placed.keywords, "observers": [*placed.keywords.get("observers", ()), noted]}
    with random.preserved_globals():
        torch.manual_seed(errand.ambient)
        states = driver.iterate(placed.step, placed.initial_state(), placed.new_loader(), cfg, **keywords)
        try:
            reason = _train(states, errand, noted)
        except RunFailed as error:
            if isinstance(error.__cause__, PurityError):
                return Passage(noted.places, noted.saved, None, str(error.__cause__))
            raise
    return Passage(noted.places, noted.saved, reason)


def _train(states: Generator[Any, None, Result], errand: Errand, noted: _Noting) -> Reason | None:
    try:
        for _ in range(errand.iterations):
            noted.places.append(Place.of(next(states)))
    except StopIteration as end:
        return Reason(end.value.reason)
    if errand.ending == "leave":
        states.close()
        noted.saved = noted.places[-1].counters.iteration
    else:
        with contextlib.suppress(Crash):
            states.throw(Crash())
    return None


class _Noting(Observer):
    """Notes where a run starts and what is on the disk."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.saved = -1

    def on_start(self, info: Any, state: Any) -> None:
        self.places.append(Place.of(state))

    def on_checkpoint(self, path: Path, state: Any) -> None:
        self.saved = state.counters.iteration
