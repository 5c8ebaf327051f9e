"""Law 7: looking at a run changes no bit of it."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import run_with
from helios_fn.testing.strategies import cadences

from ..jobs import Case, build
from ..strategies import cases, examples, retentions


@settings(max_examples=examples(20))
@given(cases(), st.data())
def test_logging_and_saving_more_often_changes_no_bit(case: Case, data):
    """Another log, fingerprint or checkpoint cadence, or keeping others: the same batches and the same final state."""
    units = ("iteration",) if case.source == "stream" else ("iteration", "epoch")
    changed = dataclasses.replace(
        case,
        log_every=data.draw(st.integers(1, 4)),
        fingerprint_every=data.draw(st.none() | st.integers(1, 4)),
        checkpoint_every=data.draw(cadences(units=units)),
        retention=data.draw(retentions(case.validate_every is not None)),
    )
    one, other = run_with(build(case), []), run_with(build(changed), [])
    assert one.batches == other.batches
    assert hf.tree.equal(one.state, other.state)


@settings(max_examples=examples(20))
@given(cases(), st.data())
def test_validating_more_often_changes_only_what_validation_found(case: Case, data):
    """Validation draws random numbers of its own; outside ``state.validation`` nothing notices."""
    units = ("iteration",) if case.source == "stream" else ("iteration", "epoch")
    quiet = dataclasses.replace(case, validate_every=None, early_stop=None, retention=None, fingerprint_every=None)
    watched = dataclasses.replace(quiet, validate_every=data.draw(cadences(units=units)))
    one, other = run_with(build(quiet), []), run_with(build(watched), [])
    assert one.batches == other.batches
    assert hf.tree.equal(one.state.replace(validation=None), other.state.replace(validation=None))
    assert [row for row in other.rows if row.kind == "train"] == one.rows


@settings(max_examples=examples(10))
@given(cases())
def test_a_run_without_a_root_gives_the_same_state(case: Case):
    """Checkpoints are an observation too: a run that keeps everything in memory ends in the same bits."""
    job = build(case)
    cfg = dataclasses.replace(job.cfg, root=None, checkpoint_every=None, retention=None)
    result = hf.run(job.step, job.state, job.loader(), cfg, **job.keywords)
    assert hf.tree.equal(result.state, run_with(job, []).state)
