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
