"""Evaluation over several processes: the bits of one, whoever evaluated which batch."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from helios_fn import tree

from ..strategies import examples
from . import evaluating


@settings(max_examples=examples(3))
@example(processes=3, samples=14, size=1, seed=2)  # where sums of floats depend on their order
@example(processes=4, samples=3, size=1, seed=0)  # and a rank has nothing
@given(processes=st.integers(2, 4), samples=st.integers(1, 14), size=st.integers(1, 2), seed=st.integers(0, 999))
def test_metrics_and_predictions_do_not_depend_on_the_number_of_processes(pool, processes, samples, size, seed):
    """Counts, float sums, weighted means and outputs, with ranks that have no batch, or none that weighs."""
    metrics, outputs, own = evaluating.found(samples, size, seed)
    everywhere = pool(evaluating.found, samples, size, seed, processes=processes)
    for there in everywhere:
        assert tree.equal(there[:2], (metrics, outputs))
    assert [number for *_, numbers in everywhere for number in numbers] == own


def test_a_dev_run_and_a_range_test_are_the_same_on_all_ranks(pool):
    """One temporary folder for all, and the bits of one process."""
    state, losses = evaluating.tried(8)
    for other, theirs in pool(evaluating.tried, 8, processes=2):
        assert tree.equal(other.params, state.params)
        assert other.counters == state.counters
        assert theirs == losses
