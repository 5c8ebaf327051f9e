"""What processes exchange: sums of gradients by every way through `exchange`, and trees by the collectives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.distributed import exchange
from helios_fn.distributed.reduction import SUMS, combine

from ..strategies import examples
from . import trades

LARGE, SMALL = exchange.GATHERED_BYTES, 0
"""Up to how many bytes everything is gathered: so all of it, or nothing."""


def alone(seed, count, dtypes, numel, reduction):
    total = SUMS[reduction]()
    for term in trades.random_terms(seed, count, dtypes, numel):
        total.push(term)
    return combine([total.blocks()], count, reduction)


@settings(max_examples=examples(12))
@given(
    seed=st.integers(0, 2**31),
    processes=st.integers(2, 4),
    count=st.integers(1, 9),
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]), min_size=1, max_size=3
    ),
    numel=st.integers(0, 9),
    limit=st.sampled_from([LARGE, SMALL]),
)
def test_the_tree_sum_over_processes_is_that_of_one(pool, seed, processes, count, dtypes, numel, limit):
    """Bit for bit on every rank, by each way; with ranks that hold nothing, and parts of data without elements."""
    expected = alone(seed, count, dtypes, numel, "tree")
    for found, _ in pool(trades.summed, seed, count, dtypes, numel, "tree", limit, processes=processes):
        assert tree.equal(found, expected)


@pytest.mark.parametrize(
    ("processes", "count", "reduction", "limit", "way"),
    [
        (3, 5, "tree", LARGE, "_gathered"),
        (3, 5, "tree", SMALL, "_scattered"),
        (4, 3, "tree", SMALL, "_scattered"),
        (2, 2, "tree", SMALL, "_all_reduced"),
        (2, 4, "tree", SMALL, "_all_reduced"),
        (2, 3, "tree", SMALL, "_scattered"),
        (3, 5, "fold", SMALL, "_all_reduced"),
        (3, 5, "fold", LARGE, "_gathered"),
        (4, 3, "fold", SMALL, "_all_reduced"),
    ],
)
def test_the_way_depends_on_the_size_and_the_plan_and_not_the_result(pool, processes, count, reduction, limit, way):
    """Each way is taken where it is meant to be; a tree has the same bits by all, a fold the same bits again."""
    call = (trades.summed, 5, count, [torch.float32, torch.float64], 7, reduction, limit)
    outcomes = pool(*call, processes=processes)
    assert {tuple(ways) for _, ways in outcomes} == {(way,)}
    first = outcomes[0][0]
    assert all(tree.equal(found, first) for found, _ in outcomes), "the ranks differ"
    assert tree.equal(pool(*call, processes=processes)[0][0], first), "the same again is not the same"
    whole = alone(5, count, [torch.float32, torch.float64], 7, "tree")
    if reduction == "tree":
        assert tree.equal(first, whole)
    for got, wanted in zip(tree.leaves(first), tree.leaves(whole), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_who_hands_over_another_share_than_its_own_is_told(pool):
    """Two ranks with micro-batch 0 would count it twice."""
    outcomes = pool.outcomes(trades.wrong_share, 2, processes=2)
    assert outcomes[1].kind == "ValueError"
    assert "process 1 of 2 holds the micro-batches 0 to 0 of 2, but its share is 1 to 1" in outcomes[1].message


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("op", ["sum", "mean"])
def test_all_reduce_is_the_sum_or_the_mean_of_each_leaf(pool, processes, op):
    """In every dtype, for 0-d and empty leaves too, and dtypes stay."""
    dtypes = [each for each in trades.DTYPES if op == "sum" or each.is_floating_point]
    parts = [trades.values_of(rank, dtypes) for rank in range(processes)]
    model = {path: sum(part[path] for part in parts) for path in parts[0]}
    if op == "mean":
        model = {path: leaf / processes for path, leaf in model.items()}
    for found, kinds in pool(trades.reduced, op, processes=processes):
        assert found == {path: leaf.to(parts[0][path].dtype).tolist() for path, leaf in model.items()}
        assert kinds == [leaf.dtype for leaf in parts[0].values()]


@pytest.mark.parametrize(("processes", "source"), [(1, 0), (2, 1), (3, 2)])
def test_all_gather_stacks_by_rank_and_broadcast_copies_one(pool, processes, source):
    """Booleans too; arguments stay as they are."""
    parts = [trades.values_of(rank, [*trades.DTYPES, torch.bool]) for rank in range(processes)]
    stacked = {path: torch.stack([part[path] for part in parts]) for path in parts[0]}
    for every, one in pool(trades.gathered_and_broadcast, source, processes=processes):
        assert tree.equal(every, stacked)
        assert tree.equal(one, parts[source])


def test_misuse_of_a_collective_is_an_error_before_anything_is_sent(pool):
    """So the others do not wait."""
    for found in pool(trades.misused, processes=2):
        no_rank, no_tensor, no_mean, no_op = found
        assert no_rank == "ValueError: source=7 is no rank of 2 processes"
        assert no_tensor.startswith("TypeError: only tensors can be exchanged: ['a'] is")
        assert no_mean.startswith("TypeError: a mean needs floating point: ['n'] is")
        assert no_op == "ValueError: op must be 'sum' or 'mean', got 'max'"
