"""Averages of the parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.nn import ema

VECTORS = st.lists(st.floats(-100, 100), min_size=2, max_size=2).map(lambda x: torch.tensor(x, dtype=torch.float64))


@given(decay=st.floats(0, 0.99999), values=st.lists(VECTORS, min_size=1, max_size=6))
def test_ema_is_decay_times_shadow_plus_the_rest_times_params(decay, values):
    average = ema(decay)
    shadow = average.init({"w": values[0]})
    expected = values[0]
    for count, value in enumerate(values[1:], 1):
        shadow = average.update(shadow, {"w": value}, count)
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(shadow["w"], expected, rtol=1e-12, atol=1e-10)


@given(decay=st.floats(0, 0.99999), value=VECTORS)
def test_the_average_of_constant_params_is_exactly_these(decay, value):
    value = value + 0.0  # the sign of zero is not kept
    average = ema(decay)
    shadow = average.init({"w": value})
    assert tree.equal(average.update(shadow, {"w": value}, 1), {"w": value})


def test_update_is_pure_and_the_shadow_shares_no_memory_with_the_params():
    average = ema(0.5)
    params = {"count": torch.tensor(3), "w": torch.tensor([1.0, 2.0])}
    before = tree.map(torch.clone, params)
    shadow = average.init(params)
    kept = tree.map(torch.clone, shadow)
    moved = average.update(shadow, params, 1)
    for leaf in (*tree.leaves(shadow), *tree.leaves(moved)):
        leaf.add_(1)
    assert tree.equal(params, before)
    assert tree.equal(tree.map(lambda leaf: leaf - 1, shadow), kept)


def test_integers_and_scalars_are_copied():
    average = ema(0.5)
    shadow = average.init({"count": torch.tensor(3), "depth": 4, "w": torch.zeros(1)})
    moved = average.update(shadow, {"count": torch.tensor(8), "depth": 5, "w": torch.ones(1)}, 1)
    assert tree.equal(moved, {"count": torch.tensor(8), "depth": 5, "w": torch.tensor([0.5])})


def test_half_precision_has_a_float32_shadow_that_moves():
    average = ema(0.999)
    start = {"w": torch.ones(1, dtype=torch.bfloat16)}
    shadow = average.init(start)
    moved = average.update(shadow, {"w": torch.full((1,), 2.0, dtype=torch.bfloat16)}, 1)
    assert shadow["w"].dtype == moved["w"].dtype == torch.float32
    assert moved["w"] > 1


def test_ema_works_under_vmap():
    average = ema(0.9)
    old, new = torch.randn(2, 4, 3)
    stacked = torch.vmap(lambda a, b: average.update({"w": a}, {"w": b}, 1)["w"])(old, new)
    assert tree.equal(stacked, average.update({"w": old}, {"w": new}, 1)["w"])


def test_a_donated_update_has_the_same_bits_in_the_memory_that_was_given_up():
    average = ema(0.9)
    params = {"count": torch.tensor(3), "h": torch.randn(3).bfloat16(), "w": torch.randn(4)}
    shadow = given = average.init(params)
    given = tree.map(torch.clone, given)
    for step in range(3):
        params = tree.map(lambda leaf, step=step: leaf + step, params)
        place = given["w"].data_ptr()
        shadow, given = average.update(shadow, params, step), average.update(given, params, step, donate=True)
        assert tree.equal(shadow, given)
        assert given["w"].data_ptr() == place


def test_a_donated_shadow_that_shares_memory_with_the_params_is_copied():
    params = {"w": torch.ones(2)}
    before = {"w": params["w"].clone()}
    assert ema(0.5).update(params, params, 1, donate=True)["w"] is not params["w"]
    assert tree.equal(params, before)


def test_the_average_is_differentiable_and_compiles():
    average = ema(0.9)
    old, new = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    moved = average.update({"w": old}, {"w": new}, 1)["w"]
    left, right = torch.autograd.grad(moved.sum(), [old, new])
    torch.testing.assert_close(left, torch.full((3,), 0.9))
    torch.testing.assert_close(right, torch.full((3,), 0.1))
    shadow, params = {"n": 1, "w": torch.zeros(2)}, {"n": 2, "w": torch.ones(2)}
    update = torch.compile(lambda s, p: average.update(s, p, 1, donate=True), fullgraph=True, backend="eager")
    found = update(shadow, params)
    assert found["w"].data_ptr() == shadow["w"].data_ptr()
    assert tree.equal(found, average.update({"n": 1, "w": torch.zeros(2)}, params, 1))


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan"), True, "0.9"])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be a number with 0 <= decay < 1"):
        ema(decay)


def test_another_structure_is_refused():
    average = ema()
    with pytest.raises(ValueError, match="another structure"):
        average.update({"w": torch.ones(1)}, {"v": torch.ones(1)}, 1)
