"""The arithmetic that every accumulation of gradients shares."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import accumulate, tree
from helios_fn.tracing import is_traced

LEAVES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3).map(torch.tensor)
WEIGHTS = st.one_of(st.integers(1, 1000), st.floats(0.125, 100))


@settings(max_examples=50)
@given(grads=st.lists(LEAVES, min_size=1, max_size=5), data=st.data())
def test_the_arithmetic_is_product_then_sum_then_quotient(grads, data):
    weights = [data.draw(WEIGHTS) for _ in grads]
    acc = accumulate.scale([grads[0]], weights[0])
    expected = grads[0] * weights[0]
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        accumulate.add_(acc, accumulate.scale([grad], weight))
        expected = expected + grad * weight
    assert tree.equal(acc, [expected])
    assert tree.equal(accumulate.divide(acc, sum(weights)), [expected / sum(weights)])


@settings(max_examples=30)
@given(leaf=LEAVES, weight=WEIGHTS)
def test_a_tensor_weight_gives_the_bits_of_a_number(leaf, weight):
    tensor = torch.tensor(weight, dtype=torch.float64)
    assert tree.equal(accumulate.scale([leaf], tensor), accumulate.scale([leaf], weight))
    assert tree.equal(accumulate.divide([leaf], tensor), accumulate.divide([leaf], weight))


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_weight_zero_gives_zeros_whatever_the_leaf_holds(zero):
    poison = torch.tensor([math.nan, math.inf, 1.0])
    assert tree.equal(accumulate.scale([poison], zero), [torch.zeros(3)])
    assert tree.equal(accumulate.divide([poison], zero), [torch.zeros(3)])


@pytest.mark.parametrize("weight", [0, 1, 3, torch.tensor(1), torch.tensor(3)])
def test_scaled_leaves_are_private_even_of_expanded_inputs(weight):
    source = torch.ones(1)
    leaf = source.expand(4)
    (scaled,) = accumulate.scale([leaf], weight)
    accumulate.add_([scaled], [torch.ones(4)])
    assert tree.equal(source, torch.ones(1))
    assert tree.equal(scaled, torch.full((4,), float(weight) + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_accumulate_in_float32_and_come_back_in_their_own_dtype(dtype):
    leaf = torch.full((2,), 60000.0, dtype=torch.float16).to(dtype)
    acc = accumulate.scale([leaf], 64)
    accumulate.add_(acc, accumulate.scale([leaf], 1))
    assert acc[0].dtype == accumulate.zeros([leaf])[0].dtype == torch.float32
    assert tree.equal(accumulate.divide(acc, 65, like=[leaf]), [leaf])


def test_no_leaves_is_no_error():
    acc = accumulate.scale([], 2)
    accumulate.add_(acc, [])
    assert acc == accumulate.divide(acc, 2) == accumulate.zeros([]) == []


def test_transforms_and_the_compiler_get_the_same_bits():
    """vmap has no rule for list kernels, so another route is taken there."""

    def mean(left, right):
        acc = accumulate.scale([left], 3)
        accumulate.add_(acc, accumulate.scale([right], 2.5))
        return accumulate.divide(acc, 5.5)[0]

    left, right = torch.randn(2, 4, 3)
    assert tree.equal(torch.vmap(mean)(left, right), mean(left, right))
    assert tree.equal(torch.compile(mean, backend="aot_eager", fullgraph=True)(left, right), mean(left, right))


def test_is_traced_knows_transforms_and_the_compiler():
    seen = []

    def function(x):
        seen.append(is_traced())
        return x.sum()

    function(torch.ones(2))
    torch.vmap(function)(torch.ones(2, 2))
    torch.func.grad(function)(torch.ones(2))
    assert seen == [False, True, True]
    assert torch.compile(lambda x: x + is_traced(), backend="eager", fullgraph=True)(torch.tensor(1)) == 2
