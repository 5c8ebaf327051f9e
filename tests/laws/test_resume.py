"""Law 1: a run stopped anywhere and resumed equals the run that never stopped."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.sinks import read_rows
from helios_fn.testing import Stop, Trace, assert_same_run, check_resume, run_with
from helios_fn.testing.digests import leaf_digests
from helios_fn.testing.strategies import interruptions
from helios_fn.testing.trace import logged_rows, run_leg

from ..jobs import Case, build
from ..strategies import cases, examples
from .traps import PLACES, Sprung, Trap

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


@settings(max_examples=examples(60))
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
    ],
    ids=lambda case: f"{case.unit}-{case.source}-{'own' if case.handwritten else 'make'}_step",
)
def test_every_stop_point_of_a_job_with_everything_switched_on(case: Case):
    """No iteration is a bad place to stop: not the middle of an epoch, nor its last batch, nor mid-accumulation."""
    job = build(case)
    iterations = len(run_with(job, []).batches)
    others = itertools.cycle(("leave", "error", "signal"))
    stops = [Stop(at, kind) for at in range(1, iterations + 1) for kind in ("crash", next(others))]
    check_resume(job.step, job.state, job.loader, job.cfg, stops=stops, **job.keywords)


def failing_run(job, traps: list[Trap], root: Path) -> Trace:
    """The trace of a run that springs one trap after the other, and is started again each time."""
    trace = Trace()
    for leg, trap in enumerate([*traps, Trap("nowhere", 0)]):
        try:
            result = run_leg(trap.set_in(job).in_root(root), None, 1 + leg, trace)
        except hf.RunFailed as error:
            if not isinstance(error.__cause__, Sprung):
                raise
            check_kept(error, trap, given_away=job.cfg.donate is True)
        else:
            trace.state, trace.final, trace.reason = result.state, leaf_digests(result.state), result.reason
    trace.rows = logged_rows(root)
    return trace


def check_kept(error: hf.RunFailed, trap: Trap, *, given_away: bool) -> None:
    """All but the iteration in progress is kept, unless a log may be torn or the state before it was given away:
    then the checkpoint before stays. Before validation has been tried out, there is nothing to keep."""
    if "tried out" in str(error):
        assert (error.checkpoint, error.iteration) == (None, 0)
    elif not trap.place.startswith("sink") and not given_away:
        assert error.checkpoint is not None
        assert error.iteration >= trap.sprung - 1


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=examples(6))
@given(data=st.data())
def test_an_error_anywhere_in_the_users_code_is_an_interruption(place: str, data: st.DataObject):
    """Wherever an iteration fails, its rows, validation and batches are those of a run that did not fail.

    Running again completes it exactly once: the step may have been computed, but not all that is due after it.
    """
    sources = {"loader": ("loader", "dataloader", "stream"), "advance": ("phases",)}
    every = ("loader", "dataloader", "stream", "phases")
    case = data.draw(cases(sources=sources.get(place, every), max_iterations=6))
    if "valid" in place:
        case = dataclasses.replace(case, validate_every=case.validate_every or hf.Every(2, "iteration"))
        case = dataclasses.replace(case, own_validation=case.own_validation and place != "on_validation_batch")
    job = build(case)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = failing_run(job, [], root / "whole")
        moments = data.draw(st.lists(st.integers(0, len(whole.batches)), min_size=1, max_size=2))
        traps = [Trap(place, iteration) for iteration in sorted(moments)]
        failing = failing_run(job, traps, root / "failing")
        event("sprung" if traps[0].sprung >= 0 else "never passed there")
        assert_same_run(whole, failing, f"{place} failed in or after {moments}")
        assert own_rows(root / "failing") == own_rows(root / "whole"), "the log of the failing sink"


def own_rows(root: Path) -> list:
    return [
        row._replace(time=0.0, observed={})
        for path in sorted(root.glob("logs/*/passing.jsonl"))
        for row in read_rows(path)
    ]


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
