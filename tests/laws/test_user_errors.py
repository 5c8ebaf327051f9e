"""Law 1, where the user's own code fails: an exception anywhere is an interruption like any other."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.sinks import read_rows
from helios_fn.testing import Trace, assert_same_run
from helios_fn.testing.digests import leaf_digests
from helios_fn.testing.trace import logged_rows, run_leg

from ..jobs import build
from ..strategies import cases, examples
from .traps import PLACES, Sprung, Trap


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
    then the checkpoint before stays. Validation is tried out before there is anything to keep."""
    tried_out = trap.place == "validate" and trap.sprung == 0
    if not trap.place.startswith("sink") and not given_away and not tried_out:
        assert error.checkpoint is not None
        assert error.iteration >= trap.sprung - 1


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=examples(5))
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
