"""What a run did, recorded so that two runs can be compared: batches, rows, final state, reason."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import driver, random, tree
from ..config import Every, RunConfig
from ..sinks import JsonLines, read_rows
from ..types import Reason, Row
from .interrupt import Crash, Interrupter, Stop


@dataclasses.dataclass
class Trace:
    """The observable facts of a run, over all its legs.

    Attributes:
        batches: for each iteration, the digest of the batch that the step received.
        conflicts: iterations that received another batch when they were repeated after a crash.
        rows: the log, without wall-clock times.
        state: the final state; ``None`` while the run is not finished.
        reason: why it ended.
    """

    batches: dict[int, str] = dataclasses.field(default_factory=dict)
    conflicts: list[int] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    state: Any = None
    reason: Reason | None = None


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

    def in_root(self, root: str | Path) -> Job:
        """The same job, quiet, with checkpoints in ``root`` (every second iteration if it had none)."""
        every = self.cfg.checkpoint_every or Every(2, "iteration")
        cfg = dataclasses.replace(self.cfg, root=root, progress=False, resume="auto", checkpoint_every=every)
        return dataclasses.replace(self, cfg=cfg)


def run_leg(job: Job, trace: Trace, stop: Stop | None, ambient: int) -> None:
    """Run or resume ``job`` up to ``stop`` or to its end, adding to ``trace``.

    The global generators are seeded with ``ambient`` first, so that a step that secretly depends on
    them gives another result in every leg instead of now and then.
    """
    recorder = _Recorder(job.step, trace)
    observers = [*job.keywords.get("observers", ()), *([Interrupter(stop)] if stop else [])]
    sinks = [*job.keywords.get("sinks", ()), JsonLines()]
    keywords = {**job.keywords, "observers": observers, "sinks": sinks}
    loader = job.loader() if callable(job.loader) else job.loader
    with random.preserved_globals():
        torch.manual_seed(ambient)
        states = driver.iterate(recorder, job.state, loader, job.cfg, **keywords)
        try:
            while True:
                state = next(states)
                if stop is not None and stop.kind == "leave" and state.counters.iteration == stop.iteration:
                    states.close()
                    return
        except StopIteration as end:
            if end.value.reason is not Reason.SIGNAL:
                trace.state, trace.reason = end.value.state, end.value.reason
                trace.rows = logged_rows(Path(job.cfg.root))  # type: ignore[arg-type]
        except Crash:
            return


def run_with(job: Job, stops: list[Stop], root: Path | None = None) -> Trace:
    """Run ``job`` to its end with an interruption at each of ``stops``, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        placed = job.in_root(folder if root is None else root)
        trace = Trace()
        for leg, stop in enumerate([*stops, None]):
            run_leg(placed, trace, stop, ambient=1 + leg)
        return trace


def logged_rows(root: Path) -> list[Row]:
    """All rows under a root, without their wall-clock times."""
    return [row._replace(time=0.0) for path in sorted(root.glob("logs/*/metrics.jsonl")) for row in read_rows(path)]


class _Recorder:
    """A step that notes the digest of each batch it receives."""

    def __init__(self, step: Callable[[Any, Any], Any], trace: Trace) -> None:
        self._step = step
        self._trace = trace

    def __call__(self, state: Any, batch: Any) -> Any:
        found, iteration = tree.digest(batch), state.counters.iteration
        if self._trace.batches.setdefault(iteration, found) != found:
            self._trace.conflicts.append(iteration)
            self._trace.batches[iteration] = found
        return self._step(state, batch)
