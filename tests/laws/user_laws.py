"""The laws that say something about each of the correct jobs of users, in the forms that look hardest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from helios_fn.testing import (
    Job,
    LawDoesNotApply,
    check_accumulation,
    check_counting,
    check_observation,
    check_order,
    check_resume,
    check_round_trip,
    check_validation,
    check_world,
)
from helios_fn.testing.first import check_first_step
from helios_fn.testing.machine import check_machine

from .user_jobs import JOBS, SHARED

COUPLED = {"batch norm", "a step that learns to learn"}
# Noise, and a step that takes no micro-batches.
INAPPLICABLE = {
    "dropout by key",
    "frozen layers",
    "a game of two optimisers",
    "a module with noise and a validator",
    "what is remembered does not matter",
    "noise by key in several processes",
}


def parts(job: Job):
    return job.step, job.state, job.loader, job.cfg


def accumulates_or_says_why_not(name: str, job: Job, examples: int | None = None) -> None:
    if name in INAPPLICABLE:
        with pytest.raises(LawDoesNotApply):
            check_accumulation(*parts(job))
    else:
        check_accumulation(*parts(job), coupled=name in COUPLED, examples=examples)


def laws(name: str) -> dict[str, Callable[[], None]]:
    """Each law with all its stops, with workers, with generated examples, and in other worlds where that can be."""
    job, spec = JOBS[name](), SHARED.get(name)
    found: dict[str, Callable[[], None]] = {
        "step": lambda: check_first_step(job, 100),
        "order": lambda: check_order(job.loader),
        "machine": lambda: check_machine(spec or job, worlds=(1, 2) if spec else (1,), examples=30),
        "accumulation": lambda: accumulates_or_says_why_not(name, job, 20),
    }
    for law, check, arguments, keywords in (
        ("round_trip", check_round_trip, (job.state,), {}),
        ("counting", check_counting, parts(job), job.keywords),
        ("resume", check_resume, parts(job), job.keywords),
        ("observation", check_observation, parts(job), job.keywords),
    ):
        found[law] = functools.partial(in_both_forms, check, *arguments, **keywords)
    if "validate" in job.keywords:
        found["validation"] = lambda: check_validation(job.keywords["validate"], job.state, examples=20)
    if spec:
        found["world"] = functools.partial(in_both_forms, check_world, spec, processes=(1, 2))
    return found


def in_both_forms(check: Callable[..., object], *arguments, **keywords) -> None:
    for examples in (None, 20):
        check(*arguments, examples=examples, **keywords)
