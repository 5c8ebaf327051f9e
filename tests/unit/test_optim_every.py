"""The laws of `every`: the weighted mean of m calls, in the bits of the fold, with all of it in the state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import accumulate, optim, tree

from .optimisers import DTYPES, grads_at, params_of

WEIGHTS = st.sampled_from([0, 1, 1.0, 2, 3, 7, 0.1, 4096])


def folded(optimizer, params, state, calls):
    """Iteration-unit accumulation in fold order, written out."""
    leaves = [tree.leaves(grads) for grads, _ in calls]
    total = sum((float(weight) for _, weight in calls), 0.0)
    if total == 0:
        return params, state
    acc = accumulate.scale(leaves[0], calls[0][1])
    for grads, (_, weight) in zip(leaves[1:], calls[1:], strict=True):
        accumulate.add_(acc, accumulate.scale(grads, weight))
    mean = tree.unflatten(tree.structure(params), accumulate.divide(acc, total, like=leaves[0]))
    return optimizer.update(mean, state, params)


@settings(max_examples=60, deadline=None)
@given(m=st.integers(2, 4), dtypes=st.sampled_from(sorted(DTYPES)), data=st.data())
def test_every_has_the_bits_of_accumulation_in_fold_order(m, dtypes, data):
    inner = optim.adamw(0.05)
    outer = optim.every(m, inner)
    params = wanted = params_of(DTYPES[dtypes])
    state, inner_state = outer.init(params), inner.init(params)
    for update in range(3):
        calls = [(grads_at(update * m + i, params), data.draw(WEIGHTS)) for i in range(m)]
        wanted, inner_state = folded(inner, wanted, inner_state, calls)
        for grads, weight in calls:
            params, state = outer.update(grads, state, params, weight=weight)
        assert tree.equal(params, wanted)
        assert tree.equal(state.inner, inner_state)


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.1, 100), min_size=1, max_size=5))
def test_the_update_uses_the_weighted_mean(weights):
    optimizer = optim.every(len(weights), optim.sgd(1.0))
    params = tree.map(lambda leaf: torch.zeros_like(leaf, dtype=torch.float64), params_of())
    state = optimizer.init(params)
    grads = [grads_at(i, params) for i in range(len(weights))]
    mean = tree.map(lambda *leaves: sum(w * g for w, g in zip(weights, leaves, strict=True)) / sum(weights), *grads)
    for grad, weight in zip(grads, weights, strict=True):
        params, state = optimizer.update(grad, state, params, weight=weight)
    for found, wanted in zip(tree.leaves(params), tree.leaves(mean), strict=True):
        torch.testing.assert_close(found, -wanted, rtol=1e-12, atol=1e-12)


def test_every_one_is_the_optimiser_itself_in_bits():
    params = other = params_of()
    inner, outer = optim.adamw(0.1), optim.every(1, optim.adamw(0.1))
    inner_state, state = inner.init(params), outer.init(params)
    for step in range(5):
        grads = grads_at(step, params)
        params, state = outer.update(grads, state, params, weight=3)
        other, inner_state = inner.update(grads, inner_state, other)
        assert tree.equal((params, state.inner), (other, inner_state))


def test_calls_between_updates_return_the_very_same_parameters():
    optimizer = optim.every(3, optim.adamw(lambda count: 0.1 / (count + 1)))
    params = params_of()
    state = optimizer.init(params)
    for step in range(8):
        before, rate = params, optimizer.monitor(state)
        params, state = optimizer.update(grads_at(step, params), state, params)
        assert optimizer.count(state) == (step + 1) // 3
        if step % 3 != 2:
            assert params is before
            assert optimizer.monitor(state) == rate


@pytest.mark.parametrize("m", [1, 3])
def test_no_weight_no_update_and_nothing_left_pending(m):
    optimizer = optim.every(m, optim.adamw(0.1))
    params = params_of()
    start = optimizer.init(params)
    state = start
    broken = tree.map(lambda leaf: torch.full_like(leaf, float("nan")), params)
    for _ in range(2 * m):
        new, state = optimizer.update(broken, state, params, weight=0)
        assert new is params
    assert tree.equal(state, start)


def test_a_call_without_weight_adds_nothing_whatever_it_holds():
    optimizer = optim.every(2, optim.sgd(1.0))
    params = {"w": torch.zeros(2)}
    state = optimizer.init(params)
    _, state = optimizer.update({"w": torch.full((2,), float("nan"))}, state, params, weight=torch.tensor(0.0))
    params, _ = optimizer.update({"w": torch.ones(2)}, state, params, weight=torch.tensor(5))
    assert torch.equal(params["w"], -torch.ones(2))


def test_the_first_call_of_weight_one_is_kept_exactly():
    optimizer = optim.every(2, optim.sgd(1.0))
    params, grads = {"w": torch.ones(3)}, {"w": torch.tensor([-0.0, 1e-45, float("inf")])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    assert tree.equal(state.pending, grads)


def test_half_precisions_accumulate_in_float32():
    optimizer = optim.every(2, optim.sgd(1.0))
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    state = optimizer.init(params)
    for value in (256.0, 1.0):
        params, state = optimizer.update({"w": torch.tensor([value]).bfloat16()}, state, params)
    assert state.pending["w"].dtype == torch.float32
    assert params["w"].item() == torch.tensor(-128.5).bfloat16().item()


def test_clipping_inside_clips_the_mean_and_before_it_each_call():
    params = {"w": torch.zeros(1)}
    ends = []
    for optimizer in (
        optim.every(2, optim.chain(optim.clip_by_value(1.0), optim.sgd(1.0))),
        optim.chain(optim.clip_by_value(1.0), optim.every(2, optim.sgd(1.0))),
    ):
        state, end = optimizer.init(params), params
        for value in (3.0, -1.0):
            end, state = optimizer.update({"w": torch.tensor([value])}, state, end)
        ends.append(end["w"].item())
    assert ends == [-1.0, 0.0]


def test_the_inner_optimiser_is_told_the_total_weight():
    optimizer = optim.every(2, optim.every(2, optim.sgd(1.0)))
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    state = optimizer.init(params)
    values, weights = [1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4]
    for value, weight in zip(values, weights, strict=True):
        params, state = optimizer.update(
            {"w": torch.tensor([value], dtype=torch.float64)}, state, params, weight=weight
        )
    assert optimizer.count(state) == 1
    assert params["w"].item() == pytest.approx(-3.0, rel=1e-15)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    optimizer = optim.every(2, optim.sgd(1.0))
    params = params_of()
    with pytest.raises(ValueError, match="weight of gradients must be finite and not negative"):
        optimizer.update(params, optimizer.init(params), params, weight=weight)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.every(0, optim.sgd()), ValueError, "m must be at least 1"),
        (lambda: optim.every(1.5, optim.sgd()), TypeError, "m must be an integer"),
        (lambda: optim.every(optim.sgd(), 2), TypeError, "got 2"),
        (lambda: optim.every(2, optim.clip_by_value(1.0)), TypeError, "chain it with an optimiser"),
        (
            lambda: optim.every(2, torch.optim.SGD([torch.ones(1)])),
            TypeError,
            r"an instance of SGD: write from_torch\(",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
