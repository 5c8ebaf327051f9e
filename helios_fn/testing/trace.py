"""What a run did, recorded so that two runs can be compared: batches, rows, final state, reason."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import driver, random, tree
from ..branching import Branch
from ..config import Every, RunConfig
from ..errors import RunFailed
from ..sinks import JsonLines, read_log
from ..types import Fingerprint, Reason, Result, Row
from .digests import Digests, batch_digests, leaf_digests
from .folders import temporary_folder
from .interrupt import Crash, Interrupter, PlannedError, Stop, in_process_crash

_LOG = "law-trace"  # a name that no sink of the user's has


class Notes(Protocol):
    """Where the legs of a run note what they receive."""

    def note_start(self, digests: Digests, /) -> None:
        """A leg was given this initial state."""

    def note_batch(self, iteration: int, digests: Digests, /) -> None:
        """The step received this batch."""

    def note_metrics(self, iteration: int, digests: Digests, /) -> None:
        """The step gave these metrics."""


@dataclasses.dataclass
class Trace:
    """The observable facts of a run, over all its legs: the parts between two interruptions.

    Attributes:
        batches: for each iteration, numbered from 0, the digests of the batch that the step received first.
        conflicts: where an iteration was repeated with another batch, the digests of that one.
        metrics: for each iteration, what the step gave last; tells where two runs part, however rarely they log.
        starts: the digests of the initial state that each leg was given.
        rows: the log, without times and other observations.
        state: the final state; ``None`` while the run is not finished, and when it ran in other processes.
        final: the digests of the final state.
        reason: why it ended.
    """

    batches: dict[int, Digests] = dataclasses.field(default_factory=dict)
    conflicts: dict[int, Digests] = dataclasses.field(default_factory=dict)
    metrics: dict[int, Digests] = dataclasses.field(default_factory=dict)
    starts: list[Digests] = dataclasses.field(default_factory=list)
    rows: list[Row | Fingerprint] = dataclasses.field(default_factory=list)
    state: Any = None
    final: Digests = dataclasses.field(default_factory=dict)
    reason: Reason | None = None

    def note_start(self, digests: Digests, /) -> None:
        """See `Notes`."""
        self.starts.append(digests)

    def note_batch(self, iteration: int, digests: Digests, /) -> None:
        """See `Notes`."""
        if self.batches.setdefault(iteration, digests) != digests:
            self.conflicts.setdefault(iteration, digests)

    def note_metrics(self, iteration: int, digests: Digests, /) -> None:
        """See `Notes`."""
        self.metrics[iteration] = digests

    def ended(self, result: Result) -> Trace:
        """This trace with the end of a run noted by digests, which can be sent to another process."""
        self.final, self.reason = leaf_digests(result.state), result.reason
        return self


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that `helios_fn.run` takes.

    ``loader`` may be a function that makes one, so that every leg gets a loader of its own, as a new
    process would.
    """

    step: Callable[[Any, Any], Any]
    state: Any
    loader: Any
    cfg: RunConfig
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def in_root(self, root: str | Path, every: int = 2) -> Job:
        """The same job, quiet, in ``root``, no time limit; a checkpoint each ``every`` iterations if it had none."""
        resume = self.cfg.resume if isinstance(self.cfg.resume, Branch) else "auto"
        cfg = dataclasses.replace(
            self.cfg,
            root=root,
            progress=False,
            resume=resume,
            checkpoint_every=self.cfg.checkpoint_every or Every(every, "iteration"),
            max_time=None,
        )
        return dataclasses.replace(self, cfg=cfg)

    def initial_state(self) -> Any:
        """The state to start from."""
        return self.state() if callable(self.state) else self.state

    def new_loader(self) -> Any:
        """A loader to read from."""
        return self.loader() if callable(self.loader) else self.loader


def run_leg(
    job: Job, stop: Stop | None, ambient: int, notes: Notes, crash: Callable[[], None] = in_process_crash
) -> Result | None:
    """Run or resume ``job`` up to ``stop`` or to its end.

    The global generators are seeded with ``ambient`` first, so that a step that secretly depends on
    them gives another result in every leg instead of now and then.

    Returns:
        How the run ended, ``None`` if it was interrupted.
    """
    cfg = job.cfg
    if stop is not None and stop.kind == "crash":
        # What is lost must not depend on how fast the disk is.
        cfg = dataclasses.replace(cfg, async_save=False)
    with random.preserved_globals():
        torch.manual_seed(ambient)
        state = job.initial_state()
        notes.note_start(leaf_digests(state))
        interrupters = [] if stop is None else [Interrupter(stop, crash)]
        keywords = {
            **job.keywords,
            "observers": [*job.keywords.get("observers", ()), *interrupters],
            "sinks": [*job.keywords.get("sinks", ()), JsonLines(name=_LOG)],
        }
        states = driver.iterate(_noting(job.step, notes), state, job.new_loader(), cfg, **keywords)
        del state
        try:
            return _result(states, stop)
        except (Crash, PlannedError):
            return None
        except RunFailed as error:
            if isinstance(error.__cause__, PlannedError):
                return None
            raise


def _result(states: Generator[Any, None, Result], stop: Stop | None) -> Result | None:
    leave_at = stop.iteration if stop is not None and stop.kind == "leave" else math.inf
    try:
        while True:
            if next(states).counters.iteration >= leave_at:
                states.close()
                return None
    except StopIteration as end:
        return None if end.value.reason in (Reason.SIGNAL, Reason.TIME) else end.value


def run_with(job: Job, stops: list[Stop], root: Path | None = None, *, every: int = 2) -> Trace:
    """Run ``job`` to its end with an interruption at each of ``stops``, in a folder of its own.

    ``every`` so many iterations it is saved, if it does not say itself when.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(_state_bytes(job))) if root is None else root
        placed = job.in_root(folder, every)
        trace = Trace()
        for leg, stop in enumerate([*stops, None]):
            result = run_leg(placed, stop, 1 + leg, trace)
            if result is not None:
                trace.state, trace.final, trace.reason = result.state, leaf_digests(result.state), result.reason
        trace.rows = logged_rows(Path(placed.cfg.root))  # type: ignore[arg-type]
        return trace


def _state_bytes(job: Job) -> int:
    """The size of a state that is there already; one that a function makes is not made for this."""
    return 0 if callable(job.state) else sum(leaf.nbytes for leaf in tree.tensors(job.state))


def logged_rows(root: Path) -> list[Row | Fingerprint]:
    """All rows and fingerprints under a root, without what was observed and may differ between equal runs."""
    return [unobserved(row) for path in sorted(root.glob(f"logs/*/{_LOG}.jsonl")) for row in read_log(path)]


def unobserved(row: Row | Fingerprint) -> Row | Fingerprint:
    """The part of a row that equal runs have in common."""
    return row._replace(time=0.0, observed={}) if isinstance(row, Row) else row._replace(time=0.0)


def _noting(step: Callable[[Any, Any], Any], notes: Notes) -> Callable[[Any, Any], Any]:
    def noted(state: Any, batch: Any) -> Any:
        iteration = state.counters.iteration
        notes.note_batch(iteration, batch_digests(batch))
        new = step(state, batch)
        notes.note_metrics(iteration, leaf_digests(getattr(new, "metrics", {})))
        return new

    return noted
