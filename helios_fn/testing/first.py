"""The step of a job on the first that it receives, and on what it may receive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import random, schedule
from ..data import Loader, Phases
from ..driver.batches import one_source, step_input
from ..errors import PurityError
from ..types import Cursor, Source
from .drawn import items_of
from .step import check_step
from .trace import Job
from .unions import rows
from .verdicts import JobFailed, LawBroken

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def check_first_step(job: Job, examples: int | None = None) -> None:
    """`check_step` on the job's initial state and first batch, and on ``examples`` of others.

    No batch of these has fewer samples than the last one of the job's loader.

    Raises:
        LawBroken, PurityError: as `check_step` does.
        JobFailed: the loader or the step fails; its error is the cause.
    """
    try:
        source, batch = _first(job)
        batches = None if examples is None else _batches(source, batch)
        check_step(job.step, job.initial_state(), batch, examples=examples, batches=batches)
    except (LawBroken, PurityError):
        raise
    except Exception as error:
        raise JobFailed(f"the job itself failed, in its first step: {error}") from error


def _first(job: Job) -> tuple[Source, Any]:
    state, loader = job.initial_state(), job.new_loader()
    source = one_source(loader.source(0) if isinstance(loader, Phases) else loader)
    share = schedule.share_of(job.cfg)
    feed = source.open(Cursor(), key=state.key, share=share)
    try:
        with random.preserved_globals():
            batch = step_input(next(iter(feed)), share.micro_batches, job.cfg.reduction, job.cfg.device)
    finally:
        feed.close()
        source.close()
    return source, batch


def _batches(source: Source, batch: Any) -> SearchStrategy[Any] | None:
    """Others like the first; only the first itself where nobody knows what its samples are."""
    from hypothesis import strategies as st

    from .trials import batches_told

    try:
        for item in items_of(batch):
            rows(item)
    except ValueError:
        return st.just(batch)
    return batches_told(batch, fewest=_fewest(source))


def _fewest(source: Source) -> int | None:
    """The samples of the last batch of an epoch, if it has only one; else what is usual."""
    if not isinstance(source, Loader) or not source.batch_size or source.drop_last or isinstance(source.dataset, dict):
        return None
    length = len(source.dataset) if source.samples is None else min(len(source.dataset), source.samples)
    return 1 if length % source.batch_size == 1 else None
