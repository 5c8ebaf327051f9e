"""Law 8: with a fixed number of micro-batches and tree reduction, the number of processes changes no bit."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import Stop, Trace, assert_same_run
from helios_fn.testing.trace import logged_rows
from helios_fn.testing.world import joined, take_in

from ..jobs import Case
from ..strategies import Leg, courses, examples, shared_cases
from . import runs

EVERYTHING = Case(
    samples=32,
    batch_size=3,
    augment="torch",
    dropout=True,
    batch_norm=True,
    schedule=True,
    ema=True,
    every=2,
    total=8,
    micro_batches=5,
    validate_every=hf.Every(2, "iteration"),
    early_stop=6,
)


def run_course(pool, case: Case, course: list[Leg]) -> Trace:
    """The run of a case over all its legs, as one trace."""
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        for number, leg in enumerate(course, start=1):
            take_in(trace, joined(pool(runs.take_part, case, leg, folder, number, processes=leg.processes)))
        trace.rows = logged_rows(Path(folder))
    return trace


@settings(max_examples=examples(16))
@given(shared_cases(), st.data())
def test_any_number_of_processes_gives_the_same_run(pool, case: Case, data: st.DataObject):
    """Final state, batches, log rows and reason are those of one process, however many share the work, and
    wherever and however they were stopped to go on in another number."""
    course = data.draw(courses(case))
    event(f"{len(course)} legs, at most {max(leg.processes for leg in course)} processes")
    what = "; then ".join(map(str, course))
    assert_same_run(run_course(pool, case, [Leg(1)]), run_course(pool, case, course), what)


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
@pytest.mark.parametrize("numbers", [(4, 2, 1), (5, 3, 2)])
def test_elastic_with_everything_switched_on(pool, unit, numbers):
    """Killed with many processes, stopped by a signal with fewer, and finished with the fewest."""
    case = dataclasses.replace(EVERYTHING, unit=unit, total=8 if unit == "iteration" else 3)
    first, second, last = numbers
    course = [Leg(first, Stop(3, "crash")), Leg(second, Stop(5, "signal"), rank=1), Leg(last)]
    assert_same_run(run_course(pool, case, [Leg(1)]), run_course(pool, case, course), f"{numbers}")


@pytest.mark.parametrize("processes", [2, 3])
def test_a_fold_is_the_same_again_and_the_tree_to_rounding(pool, processes):
    """The ordinary order depends on the number of processes, but on nothing else."""
    case = dataclasses.replace(EVERYTHING, reduction="fold", validate_every=None, early_stop=None, total=4)
    tree, fold, again = (
        run_course(pool, dataclasses.replace(case, reduction=reduction), [Leg(processes)])
        for reduction in ("tree", "fold", "fold")
    )
    assert_same_run(fold, again, "the same run again")
    assert tree.batches == fold.batches
    for one, other in zip(tree.rows, fold.rows, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_ranks_without_a_batch_to_validate_on_get_the_metrics_of_all(pool):
    """Three batches for four and five processes, and noise in the evaluation: the same metrics as alone."""
    case = dataclasses.replace(EVERYTHING, total=2, validate_every=hf.Every(1, "iteration"), early_stop=None)
    alone = run_course(pool, case, [Leg(1)])
    assert any(row.kind == "validation" for row in alone.rows)
    for processes in (4, 5):
        assert_same_run(alone, run_course(pool, case, [Leg(processes)]), f"{processes} processes")


def test_micro_batches_without_weight_have_no_part_in_it(pool):
    """Whichever rank holds them, also where an iteration has no weight at all."""
    case = Case(
        samples=9, batch_size=1, total=9, micro_batches=3, one_class_counts=True, batch_norm=False, dropout=True
    )
    alone = run_course(pool, case, [Leg(1)])
    assert_same_run(alone, run_course(pool, case, [Leg(2)]), "2 processes")
    assert_same_run(alone, run_course(pool, case, [Leg(3)]), "3 processes")
