"""Law 3: cursor and counters agree with a plain model; nothing is trained twice or skipped."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import schedule
from helios_fn.config import RunConfig
from helios_fn.schedule import Point
from helios_fn.testing import run_with
from helios_fn.testing.strategies import run_configs
from helios_fn.types import Counters, Cursor, Share

from ..jobs import Case, build
from ..strategies import cases, examples


def batches_in_order(per_epoch: int, unit: str, size: int, iterations: int):
    """The plain model: walk through the epochs batch by batch, and cut the walk into iterations."""
    epoch = batch = 0
    for _ in range(iterations):
        taken = []
        while len(taken) < size:
            taken.append((epoch, batch))
            batch += 1
            if batch == per_epoch:
                epoch, batch = epoch + 1, 0
                if unit == "epoch":
                    break
        yield taken, (epoch, batch)


@given(
    per_epoch=st.integers(1, 9),
    unit=st.sampled_from(["iteration", "epoch"]),
    size=st.integers(1, 7),
    world=st.integers(1, 7),
    iterations=st.integers(1, 12),
)
def test_assignments_agree_with_walking_through_the_epochs(per_epoch, unit, size, world, iterations):
    """For any geometry the ranks together fetch each batch exactly once, in order, and the cursor is normalised."""
    world = min(world, size)
    feeds = [schedule.assignments(Cursor(), Share(unit, size, rank, world), per_epoch) for rank in range(world)]
    for expected, after in batches_in_order(per_epoch, unit, size, iterations):
        parts = [next(feed) for feed in feeds]
        assert [position for part in parts for position in part.positions] == expected
        assert {part.count for part in parts} == {len(expected)}
        assert all(part.cursor == Cursor(0, *after) for part in parts)
        starts = [part.start for part in parts]
        assert starts == [sum(len(p.positions) for p in parts[:rank]) for rank in range(world)]


@given(st.integers(0, 50), st.integers(1, 9))
def test_slices_are_contiguous_and_balanced(count, world):
    """The ranks' slices tile the iteration, and their sizes differ by at most one."""
    slices = [schedule.rank_slice(count, rank, world) for rank in range(world)]
    assert [index for low, high in slices for index in range(low, high)] == list(range(count))
    sizes = [high - low for low, high in slices]
    assert max(sizes) - min(sizes) <= 1


points = st.builds(
    Point,
    st.builds(Cursor, st.just(0), st.integers(0, 20), st.integers(0, 5), st.none()),
    st.builds(Counters, st.integers(0, 60), st.integers(0, 99)),
)


@given(run_configs(max_total=60), points, st.integers(0, 5), st.integers(0, 3))
def test_nothing_is_due_before_the_horizon(cfg: RunConfig, before: Point, more: int, epochs: int):
    """Before the horizon nothing is due nor finished, so the driver may skip asking; at it something is."""
    after = Point(
        before.cursor._replace(epoch=before.cursor.epoch + epochs),
        before.counters._replace(iteration=before.counters.iteration + more),
    )
    ahead = schedule.horizon(before, cfg)
    reached = after.counters.iteration >= ahead.iteration or after.cursor.epoch >= ahead.epoch
    done = (after.counters.iteration if cfg.unit == "iteration" else after.cursor.epoch) >= cfg.total
    asked = any(schedule.due(before, after, cfg)) or done
    assert asked == reached


@given(run_configs(), st.integers(1, 30))
def test_due_counts_the_multiples_passed(cfg: RunConfig, last: int):
    """Walking one iteration at a time, each cadence fires exactly at its multiples."""
    every = cfg.cadence("log_every")
    at = [Point(Cursor(0, i // 3, i % 3), Counters(i, i)) for i in range(last + 1)]
    fired = [i for i in range(1, last + 1) if schedule.due(at[i - 1], at[i], cfg).log]
    count = (lambda i: i) if every.unit == "iteration" else (lambda i: i // 3)
    assert fired == [i for i in range(1, last + 1) if count(i) % every.n == 0 and count(i) != count(i - 1)]


@settings(max_examples=examples(30))
@given(cases(sources=("loader", "dataloader")))
def test_a_run_counts_as_the_plain_model_does(case: Case):
    """After a run, cursor and counters are those of the model, unless validation ended it earlier."""
    job = build(case)
    state = run_with(job, []).state
    per_epoch = hf.data.as_source(job.loader()).batches_per_epoch
    size = case.micro_batches or case.accumulation
    walked = list(batches_in_order(per_epoch, case.unit, size, state.counters.iteration))
    assert state.cursor[1:3] == walked[-1][1]
    assert state.counters.micro_step == sum(len(taken) for taken, _ in walked)
    done = state.counters.iteration if case.unit == "iteration" else state.cursor.epoch
    assert done == case.total or state.validation.bad_cycles >= case.early_stop


@settings(max_examples=examples(15))
@given(case=cases())
def test_a_finished_run_is_a_fixed_point(case: Case, tmp_path_factory):
    """Running a finished run again trains nothing, logs nothing, and returns the same state."""
    root = tmp_path_factory.mktemp("run")
    job = build(case)
    first = run_with(job, [], root)
    again = run_with(job, [], root)
    assert not again.batches
    assert hf.tree.equal(first.state, again.state)
    assert first.rows == again.rows
    assert first.reason is again.reason


@pytest.mark.parametrize(("unit", "accumulation"), [("epoch", 1), ("iteration", 3)])
def test_the_next_phase_starts_a_new_epoch(unit, accumulation):
    """A phase that ends mid-epoch counts that epoch as one; at an epoch's end it adds none."""
    assert schedule.next_phase(Cursor(0, 4, 2)) == Cursor(1, 5, 0)
    assert schedule.next_phase(Cursor(0, 4, 0)) == Cursor(1, 4, 0)


def test_more_processes_than_micro_batches_is_an_error():
    """A process without any micro-batch in a full iteration would only wait."""
    cfg = RunConfig(unit="iteration", total=math.inf, micro_batches=2)
    with pytest.raises(ValueError, match="3 processes cannot share 2 micro-batches"):
        schedule.share_of(cfg, 0, 3)
