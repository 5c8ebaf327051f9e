"""The law of observation: to look at a run changes no bit of its training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..config import Every, RunConfig
from ..data import Phases
from .compare import difference
from .examples import check_count, for_all
from .interrupt import Stop
from .laws import whole_run
from .look import Tried, closer_look
from .trace import Job, Trace, run_with
from .verdicts import LawBroken

_NEVER = Every(10**9, "iteration")
_EACH = Every(1, "iteration")
_CAUSES = """Whoever observes may read and must not write, so look at what was switched on:
  - validate, a sink or an observer writes into tensors of the state that it is shown (through .data, numpy() or a
    view of them), or into objects that step, dataset or transform use
  - validate evaluates the very modules, generators or dataset objects that training uses, and these remember it
  - the step behaves differently when a row is logged or a checkpoint is written, which it cannot know by itself"""


class Watch(NamedTuple):
    """How a run is observed.

    Attributes:
        log: the cadence of log rows.
        checkpoint: that of checkpoints.
        validate: that of validation; ``None`` leaves out the user's ``validate``.
        outlets: whether the user's own sinks and observers take part.
        profile: whether torch's profiler is on.
    """

    log: Every = _NEVER
    checkpoint: Every = _NEVER
    validate: Every | None = None
    outlets: bool = False
    profile: bool = False


_ALONE = {
    "logging each iteration": Watch(log=_EACH),
    "a checkpoint after each iteration": Watch(checkpoint=_EACH),
    "validation after each iteration": Watch(validate=_EACH),
    "your own sinks and observers": Watch(log=_EACH, outlets=True),
    "torch's profiler": Watch(profile=True),
}
_ALL = Watch(_EACH, _EACH, _EACH, outlets=True, profile=True)


def check_observation(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    examples: int | None = None,
    **run_keywords: Any,
) -> None:
    """Check that more logging, checkpoints, validation and profiling change no bit of training.

    A run that nobody looks at is compared with one that logs, saves and validates after each iteration, has the sinks
    and observers given, and is profiled: batches and final states must be equal, what validation found aside.
    Where training reads what validation found (``early_stop``, ``should_stop``, `helios_fn.Phases`), its cadence
    is part of training and stays what ``cfg`` says.

    Args:
        step, state, loader, cfg, run_keywords: as for `helios_fn.run`; keep ``cfg.total`` small. Runs are in temporary
            folders.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about twelve in a second
            for a small perceptron on one core), each with other cadences and outlets.

    Raises:
        LawBroken: the runs differ; says where first, and which observation does it.
        JobFailed: the job fails while nobody looks.
    """
    check_count(examples)
    job = Job(step, state, loader, cfg, run_keywords)
    with closer_look(job) as tried:
        quiet = whole_run(_watched(job, Watch()))
        if examples is None:
            _check(job, quiet, _ALL, tried)
        else:
            for_all(_watches(), lambda watch: _compare(job, quiet, watch, tried, f"a run with {watch}"), examples)


def _check(job: Job, quiet: Trace, watch: Watch, tried: Tried) -> None:
    try:
        _compare(job, quiet, watch, tried, "a run that is watched")
    except LawBroken as error:
        for name, alone in _ALONE.items():
            _compare(job, quiet, alone, tried, f"a run with {name}, which nothing else is added to,")
        raise error from None


def _compare(job: Job, quiet: Trace, watch: Watch, tried: Tried, what: str) -> None:
    watched = _watched(job, watch)
    tried.runs = (_watched(job, Watch()), list[Stop]()), (watched, list[Stop]())
    try:
        with _profiler() if watch.profile else contextlib.nullcontext():
            other = run_with(watched, [])
    except Exception as error:
        raise LawBroken(f"{what} fails; without it does not: {error}\n{_CAUSES}") from error
    if not _reads_validation(job):
        quiet, other = _unvalidated(quiet), _unvalidated(other)
    found = difference(quiet, dataclasses.replace(other, rows=quiet.rows))
    if found is not None:
        raise LawBroken(f"{what} differs from one that nobody looks at: {found.text}\n{_CAUSES}")


def _watched(job: Job, watch: Watch) -> Job:
    cfg = dataclasses.replace(job.cfg, root="unused", log_every=watch.log, checkpoint_every=watch.checkpoint)
    keywords = dict(job.keywords)
    if not watch.outlets:
        keywords = {name: value for name, value in keywords.items() if name not in ("sinks", "observers")}
    if not _reads_validation(job):
        if watch.validate is None:
            keywords.pop("validate", None)
        every = watch.validate if "validate" in keywords else None
        cfg = dataclasses.replace(cfg, retention=None, validate_every=every)
    return dataclasses.replace(job, cfg=cfg, keywords=keywords)


def _reads_validation(job: Job) -> bool:
    if job.cfg.early_stop is not None or job.keywords.get("should_stop") is not None:
        return True
    loader = job.new_loader()
    if isinstance(loader, Phases):
        loader.close()
    return isinstance(loader, Phases)


def _unvalidated(trace: Trace) -> Trace:
    return dataclasses.replace(trace, state=trace.state.replace(validation=None))


def _profiler() -> contextlib.AbstractContextManager[Any]:
    # What torch.profiler wraps; importing that one would cost more than the whole check.
    return torch.autograd.profiler.profile()


def _watches() -> Any:
    from hypothesis import strategies as st

    from .strategies import cadences

    often = st.just(_NEVER) | cadences(units=("iteration",))
    return st.builds(Watch, often, often, st.none() | cadences(units=("iteration",)), st.booleans())
