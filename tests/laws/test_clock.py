"""The clock is an observer too: time limits and saves by the clock change no bit and no row."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import Trace, assert_same_run, run_with
from helios_fn.testing.digests import leaf_digests
from helios_fn.testing.trace import logged_rows, run_leg

from ..jobs import Case, build
from ..strategies import cases, examples

durations = st.none() | st.floats(0.5, 12.0)
# What passes between two looks at the clock; now and then it is set back.
ticks = st.lists(st.floats(-3.0, 4.0), min_size=1, max_size=12)


@settings(max_examples=examples(8))
@given(cases(), durations, durations, ticks)
def test_no_clock_changes_what_is_trained_or_logged(case: Case, limit, every, passing):
    """Cut into launches by a time limit, and saved whenever the clock says so: state, batches and rows are the same."""
    job = build(case)
    whole = run_with(job, [])
    readings = itertools.accumulate(itertools.cycle([*passing, 40.0]), initial=0.0)  # it does go on in the end
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        placed = job.in_root(folder)
        cfg = dataclasses.replace(placed.cfg, max_time=limit, checkpoint_every_seconds=every)
        placed = dataclasses.replace(placed, cfg=cfg, keywords={**placed.keywords, "clock": readings.__next__})
        result = None
        for leg in range(100):
            result = run_leg(placed, None, 1 + leg, trace)
            if result is not None:
                break
        assert result is not None, "no progress"
        trace.state, trace.final, trace.reason = result.state, leaf_digests(result.state), result.reason
        trace.rows = logged_rows(Path(folder))
    assert_same_run(whole, trace, f"max_time={limit}, checkpoint_every_seconds={every}")
    assert result.reason is not hf.Reason.TIME
