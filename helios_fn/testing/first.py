"""The step of a job on the first that it receives."""

from __future__ import annotations

from .. import random, schedule
from ..data import Phases
from ..driver.batches import one_source, step_input
from ..errors import PurityError
from ..types import Cursor
from .step import check_step
from .trace import Job
from .verdicts import JobFailed, LawBroken


def check_first_step(job: Job) -> None:
    """`check_step` on the job's initial state and first batch.

    Raises:
        LawBroken, PurityError: as `check_step` does.
        JobFailed: the loader or the step fails; its error is the cause.
    """
    try:
        _check(job)
    except (LawBroken, PurityError):
        raise
    except Exception as error:
        raise JobFailed(f"the job itself failed, in its first step: {error}") from error


def _check(job: Job) -> None:
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
    check_step(job.step, state, batch)
