"""Sums in a fixed order, whoever holds which terms."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.distributed.exchange import nodes_of_all
from helios_fn.distributed.reduction import SUMS, Block, FoldSum, Partial, Term, TreeSum, blocks, combine, reduce_alone

SEEDS = st.integers(0, 2**31)


def random_terms(seed: int, count: int) -> list[Term]:
    generator = torch.Generator().manual_seed(seed)
    # Magnitudes far apart, so that another order almost surely gives other bits.
    scales = torch.exp(4 * torch.randn(count, generator=generator))
    return [[[torch.randn(3, generator=generator) * scale], []] for scale in scales]


def cuts(data, count: int) -> list[int]:
    inner = data.draw(st.lists(st.integers(0, count), max_size=6).map(sorted))
    return [0, *inner, count]


def sliced(terms, edges, kind) -> list[list[Block]]:
    parts = []
    for start, stop in itertools.pairwise(edges):
        total = kind(start)
        for term in terms[start:stop]:
            total.push(tree.map(torch.clone, term))
        parts.append(total.blocks())
    return parts


def padded_tree(terms, start: int, size: int):
    """The definition: a node is the sum of its children, or its left child alone."""
    if size == 1:
        return terms[start][0][0]
    half = size // 2
    left = padded_tree(terms, start, half)
    return left if start + half >= len(terms) else left + padded_tree(terms, start + half, half)


@given(seed=SEEDS, count=st.integers(1, 40), data=st.data())
def test_the_tree_sum_has_the_same_bits_for_every_way_to_cut_the_terms(seed, count, data):
    terms = random_terms(seed, count)
    whole = combine(sliced(terms, [0, count], TreeSum), count)
    parts = sliced(terms, cuts(data, count), TreeSum)
    data.draw(st.randoms(use_true_random=False)).shuffle(parts)
    assert tree.equal(combine(parts, count), whole)


@given(seed=SEEDS, count=st.integers(1, 40))
def test_the_tree_sum_is_that_of_the_padded_binary_tree(seed, count):
    terms = random_terms(seed, count)
    size = 1 << (count - 1).bit_length()
    assert tree.equal(combine(sliced(terms, [0, count], TreeSum), count), [[padded_tree(terms, 0, size)], []])


@given(seed=SEEDS, count=st.integers(1, 40))
def test_the_fold_sum_is_that_of_a_loop(seed, count):
    terms = random_terms(seed, count)
    expected = terms[0][0][0].clone()
    for (leaf,), _ in terms[1:]:
        expected += leaf
    assert tree.equal(combine(sliced(terms, [0, count], FoldSum), count, "fold"), [[expected], []])


@given(start=st.integers(0, 200), length=st.integers(0, 200))
def test_blocks_are_the_largest_nodes_within_a_slice(start, length):
    found = blocks(start, start + length)
    assert [index for first, size in found for index in range(first, first + size)] == list(
        range(start, start + length)
    )
    for first, size in found:
        assert size & (size - 1) == 0
        assert first % size == 0
        parent = first - first % (2 * size)
        assert parent < start or parent + 2 * size > start + length


@given(seed=SEEDS, start=st.integers(0, 50), length=st.integers(0, 50))
def test_the_accumulator_hands_over_exactly_these_blocks(seed, start, length):
    total = TreeSum(start)
    for term in random_terms(seed, length):
        total.push(term)
    assert [(block.start, block.size) for block in total.blocks()] == blocks(start, start + length)


def test_a_thousand_terms_need_ten_live_buffers():
    total = TreeSum()
    most = 0
    for _ in range(1000):
        total.push([[torch.ones(())]])
        most = max(most, len(total.blocks()))
    assert most <= 10


@pytest.mark.parametrize("name", SUMS)
def test_alone_the_reduction_is_the_own_sum(name):
    terms = random_terms(0, 7)
    (own,) = sliced(terms, [0, 7], SUMS[name])
    (again,) = sliced(terms, [0, 7], SUMS[name])
    assert tree.equal(reduce_alone(Partial(own, 7, name)), combine([again], 7, name))


def test_gaps_overlaps_and_emptiness_are_refused():
    def block(start, size):
        return Block(start, size, [[torch.zeros(1)]])

    with pytest.raises(ValueError, match="no block starts at micro-batch 1 of 3; the next one starts at 2"):
        combine([[block(0, 1)], [block(2, 1)]], 3)
    with pytest.raises(ValueError, match="no block starts at micro-batch 2 of 3"):
        combine([[block(0, 2)], [block(1, 1)]], 3)
    with pytest.raises(ValueError, match="end at micro-batch 2, but the iteration has 3"):
        combine([[block(0, 2)]], 3)
    with pytest.raises(ValueError, match="nothing to sum"):
        combine([], 0)


def held(terms, plan, kind) -> list[list[Block]]:
    """What each process holds after summing its own share, as a run does."""
    return [sliced(terms, [nodes[0][0], sum(nodes[-1])], kind)[0] if nodes else [] for nodes in plan]


@given(seed=SEEDS, terms=st.integers(1, 40), data=st.data())
def test_any_number_of_processes_sums_a_plan_to_the_same_bits(seed, terms, data):
    """Also with more processes than terms, some of which then hold nothing: the short last iteration of an epoch."""
    size = data.draw(st.integers(1, 40), label="processes")
    values = random_terms(seed, terms)
    whole = combine(sliced(values, [0, terms], TreeSum), terms)
    assert tree.equal(combine(held(values, nodes_of_all(terms, size, "tree"), TreeSum), terms), whole)


def test_plans_cover_every_term_once_for_all_numbers_up_to_forty():
    """Each process holds consecutive terms, the next one goes on where it ends, and what it holds are its blocks."""
    for terms in range(1, 41):
        for size in range(1, 41):
            for reduction in SUMS:
                plan = nodes_of_all(terms, size, reduction)
                assert len(plan) == size
                reached = 0
                for nodes in plan:
                    for start, width in nodes:
                        assert start == reached
                        reached += width
                assert reached == terms
                assert size > terms or all(plan)
                assert reduction == "tree" or all(len(nodes) <= 1 for nodes in plan)


@pytest.mark.soak
def test_all_plans_up_to_forty_sum_to_the_same_bits():
    for terms in range(1, 41):
        values = random_terms(terms, terms)
        whole = combine(sliced(values, [0, terms], TreeSum), terms)
        for size in range(1, terms + 1):
            plan = nodes_of_all(terms, size, "tree")
            assert tree.equal(combine(held(values, plan, TreeSum), terms), whole), (terms, size)


@given(seed=SEEDS, terms=st.integers(1, 40), size=st.integers(1, 40))
def test_a_fold_over_processes_is_the_tree_to_rounding(seed, terms, size):
    values = random_terms(seed, terms)
    found = combine(held(values, nodes_of_all(terms, size, "fold"), FoldSum), terms, "fold")
    whole = combine(sliced(values, [0, terms], TreeSum), terms)
    largest = sum(leaf.abs() for ((leaf,), _) in values)
    assert bool(((found[0][0] - whole[0][0]).abs() <= 1e-5 * largest).all())
