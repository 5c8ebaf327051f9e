"""No law accuses a job that is right; see `tests.laws.user_jobs` for the table."""

from __future__ import annotations

import pytest

from helios_fn.testing import (
    Job,
    LawDoesNotApply,
    Stop,
    check_accumulation,
    check_counting,
    check_observation,
    check_order,
    check_resume,
    check_round_trip,
    check_validation,
)
from helios_fn.testing.first import check_first_step
from helios_fn.testing.machine import check_machine

from .user_jobs import JOBS

STOPS = [[Stop(1, "leave"), Stop(3, "signal")]]
COUPLED = {"batch norm", "a step that learns to learn"}
# Noise, and a step that takes no micro-batches.
INAPPLICABLE = {"dropout by key", "frozen layers", "a game of two optimisers", "a module with noise and a validator",
                "what is remembered does not matter"}  # fmt: skip


def parts(job: Job):
    return job.step, job.state, job.loader, job.cfg


@pytest.mark.parametrize("name", JOBS)
def test_a_correct_job_obeys_the_quick_laws(name: str):
    """The laws in their quick form, with fewer stops; that of accumulation says where it does not apply."""
    job = JOBS[name]()
    check_first_step(job)
    check_round_trip(job.state)
    check_order(job.loader, workers=(0,))
    check_resume(*parts(job), stops=STOPS, **job.keywords)
    if "validate" in job.keywords:
        check_validation(job.keywords["validate"], job.state)
    accumulates_or_says_why_not(name, job)


def accumulates_or_says_why_not(name: str, job: Job, examples: int | None = None) -> None:
    if name in INAPPLICABLE:
        with pytest.raises(LawDoesNotApply):
            check_accumulation(*parts(job))
    else:
        check_accumulation(*parts(job), coupled=name in COUPLED, examples=examples)


@pytest.mark.soak
@pytest.mark.parametrize("name", JOBS)
def test_a_correct_job_obeys_all_laws(name: str):
    """Each law with all its stops, with workers, and with generated examples."""
    job = JOBS[name]()
    check_order(job.loader)
    for examples in (None, 20):
        check_round_trip(job.state, examples=examples)
        check_counting(*parts(job), examples=examples, **job.keywords)
        check_resume(*parts(job), examples=examples, **job.keywords)
        check_observation(*parts(job), examples=examples, **job.keywords)
        accumulates_or_says_why_not(name, job, examples)
    check_machine(job, examples=30)
