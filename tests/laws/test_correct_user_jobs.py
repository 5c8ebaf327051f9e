"""No law accuses a job that is right; see `tests.laws.user_jobs` for the table."""

from __future__ import annotations

import pytest

from helios_fn.testing import Stop, check_order, check_resume, check_round_trip, check_validation
from helios_fn.testing.first import check_first_step

from .user_jobs import JOBS
from .user_laws import accumulates_or_says_why_not, parts

STOPS = [[Stop(1, "leave"), Stop(3, "signal")]]


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
