"""Law 1: a run stopped anywhere and resumed equals the run that never stopped."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import Stop, assert_same_run, check_resume, run_with
from helios_fn.testing.strategies import interruptions

from ..jobs import Case, build
from ..strategies import cases, examples

EVERYTHING = Case(
    augment="torch",
    dropout=True,
    batch_norm=True,
    schedule=True,
    ema=True,
    accumulation=2,
    every=2,
    total=7,
    fingerprint_every=1,
    validate_every=hf.Every(2, "iteration"),
    early_stop=3,
    samples=11,
    batch_size=3,
)


@settings(max_examples=examples(50))
@given(cases(), st.data())
def test_stopped_anywhere_equals_never_stopped(case: Case, data: st.DataObject):
    """Final state, batches, log rows and reason are the same, however often and wherever a run was stopped."""
    job = build(case)
    whole = run_with(job, [])
    stops = data.draw(interruptions(len(whole.batches)))
    assert_same_run(whole, run_with(job, stops), f"stopped at {stops}")


@pytest.mark.parametrize(
    "case",
    [
        dataclasses.replace(
            EVERYTHING, unit=unit, total=total, accumulation=accumulation, source=source, handwritten=own
        )
        for unit, total, accumulation in (("iteration", 7, 2), ("epoch", 2, 1))
        for source, own in (("loader", False), ("loader", True), ("phases", False))
        if unit == "iteration" or not own
    ],
    ids=lambda case: f"{case.unit}-{case.source}-{'own' if case.handwritten else 'make'}_step",
)
def test_every_stop_point_of_a_job_with_everything_switched_on(case: Case):
    """No iteration is a bad place to stop: not the middle of an epoch, nor its last batch, nor mid-accumulation."""
    job = build(case)
    iterations = len(run_with(job, []).batches)
    everywhere = range(1, iterations + 1)
    others = zip(everywhere[iterations % 2 :: 2], itertools.cycle(("leave", "error", "signal")))  # of every second
    stops = [*map(Stop, everywhere), *itertools.starmap(Stop, others)]
    check_resume(job.step, job.state, job.loader, job.cfg, stops=stops, **job.keywords)


@settings(max_examples=examples(6))
@given(cases(max_iterations=5, sources=("loader", "dataloader")), st.data())
@example(dataclasses.replace(EVERYTHING, augment="random"), None)
@example(dataclasses.replace(EVERYTHING, augment="numpy", source="dataloader"), None)
def test_workers_may_change_on_resume(case: Case, data):
    """0, 1 or 2 loader workers give the same bits, and a resumed run may use another number of them."""
    whole = run_with(build(case, workers=0), [])
    stops = [Stop(2), Stop(3, "signal")] if data is None else data.draw(interruptions(len(whole.batches), most=2))
    numbers = iter([2, 0, 1])
    job = build(case)
    changing = dataclasses.replace(job, loader=lambda: build(case, workers=next(numbers)).loader())
    assert_same_run(whole, run_with(changing, stops), f"workers 2, 0, 1; stopped at {stops}")
