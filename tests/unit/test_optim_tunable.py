"""Hyperparameters in the state: changed, swept and differentiated."""

from __future__ import annotations

import pytest
import torch

from helios_fn import optim, tree
from helios_fn.optim import schedules

from .optimisers import grads_at, params_of, trained

FACTORIES = {
    "adamw": (optim.adamw, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    "adam": (optim.adam, {"lr": 0.1, "mode": "loop"}),
    "sgd": (optim.sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "mode": "foreach"}),
    "rmsprop": (optim.rmsprop, {"lr": 0.1, "alpha": 0.9, "momentum": 0.5, "centered": True}),
    "lion": (optim.lion, {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    "adafactor": (optim.adafactor, {"lr": 0.1, "beta2_decay": -0.7, "d": 1.5, "weight_decay": 0.1}),
}


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_update_has_the_bits_of_the_plain_optimiser(name):
    factory, hyper = FACTORIES[name]
    params = params_of()
    tuned, plain = optim.tunable(factory, **hyper), factory(**hyper)
    found, state = trained(tuned, params, tuned.init(params), 0, 5)
    wanted, inner = trained(plain, params, plain.init(params), 0, 5)
    assert tree.equal((found, state.inner), (wanted, inner))
    assert tuned.monitor(state) == plain.monitor(inner)


def test_the_given_floats_and_nothing_else_are_leaves():
    optimizer = optim.tunable(optim.adamw, lr=0.1, betas=(0.8, 0.9), amsgrad=True)
    hyper = optimizer.init(params_of()).hyper
    assert tree.equal(hyper, {"lr": scalar(0.1), "betas": (scalar(0.8), scalar(0.9))})


def test_a_value_that_is_changed_during_a_run_counts_from_then_on():
    params = params_of()
    tuned = optim.tunable(optim.sgd, lr=0.1, momentum=0.9)
    new, state = trained(tuned, params, tuned.init(params), 0, 3)
    changed = state._replace(hyper={**state.hyper, "lr": scalar(0.5)})
    found, changed = trained(tuned, new, changed, 3, 5)
    wanted, _ = trained(optim.sgd(0.5, momentum=0.9), new, state.inner, 3, 5)
    assert tree.equal(found, wanted)
    assert tuned.monitor(changed) == {"learning_rate": 0.5}


def test_a_schedule_is_scaled_by_a_leaf():
    schedule = schedules.cosine(0.1, 10)
    params = params_of()
    tuned = optim.tunable(optim.sgd, lr=schedule, momentum=0.9)
    state = tuned.init(params)
    assert set(state.hyper) == {"lr_scale", "momentum"}
    assert tree.equal(
        trained(tuned, params, state, 0, 4)[0],
        trained(optim.sgd(schedule, momentum=0.9), params, state.inner, 0, 4)[0],
    )
    halved = state._replace(hyper={**state.hyper, "lr_scale": scalar(0.5)})
    found, halved = trained(tuned, params, halved, 0, 4)
    half = optim.sgd(lambda count: 0.5 * schedule(count), momentum=0.9)
    assert tree.equal(found, trained(half, params, state.inner, 0, 4)[0])
    assert tuned.monitor(halved) == {"learning_rate": 0.5 * schedule(3)}


def test_a_sweep_over_members_equals_separate_runs():
    params = params_of()
    tuned = optim.tunable(optim.adamw, lr=0.1, weight_decay=0.1)
    rates, decays = [0.1, 0.01, 0.3], [0.0, 0.1, 0.5]
    state = tuned.init(params)
    stacked = tree.map(lambda leaf: torch.stack([leaf] * 3), (params, state))
    hyper = {"lr": torch.tensor(rates, dtype=torch.float64), "weight_decay": torch.tensor(decays, dtype=torch.float64)}
    given = (stacked[0], stacked[1]._replace(hyper=hyper))
    for step in range(4):
        grads = grads_at(step, params)
        given = torch.vmap(lambda p, s, grads=grads: tuned.update(grads, s, p))(*given)
    for k, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        plain = optim.adamw(rate, weight_decay=decay, mode="loop")
        wanted, _ = trained(plain, params, plain.init(params), 0, 4)
        for found, right in zip(tree.leaves(given[0]), tree.leaves(wanted), strict=True):
            torch.testing.assert_close(found[k], right, rtol=5e-6, atol=5e-6)


def test_a_hypergradient_equals_finite_differences():
    """Of the loss after a few steps of descent, with respect to the scale of a schedule and to the momentum."""
    tuned = optim.tunable(optim.sgd, lr=schedules.cosine(0.2, 6), momentum=0.5)
    start = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}

    def loss(scale, momentum):
        params, state = start, tuned.init(start)
        state = state._replace(hyper={"lr_scale": scale, "momentum": momentum})
        for _ in range(5):
            params, state = tuned.update(tree.map(lambda leaf: leaf**3, params), state, params)
        return params["w"].square().sum()

    assert torch.autograd.gradcheck(loss, (scalar(0.9).requires_grad_(), scalar(0.4).requires_grad_()))


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"lr": scalar(-0.1)}, "lr must be finite and at least 0, got -0.1"),
        ({"lr": scalar(float("nan"))}, "lr must be finite"),
        ({"momentum": scalar(0.0)}, "a momentum cannot become 0 in the state"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_update(hyper, words):
    tuned = optim.tunable(optim.sgd, lr=0.1, momentum=0.9)
    params = params_of()
    params, state = trained(tuned, params, tuned.init(params), 0, 1)
    with pytest.raises(ValueError, match=words):
        tuned.update(params, state._replace(hyper={**state.hyper, **hyper}), params)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.tunable(optim.adamw(0.1)), TypeError, "needs a native optimiser such as hf.optim.adamw"),
        (lambda: optim.tunable(optim.every, m=2, optimizer=optim.sgd()), TypeError, "needs a native optimiser"),
        (lambda: optim.tunable(torch.optim.SGD, lr=0.1), TypeError, "needs a native optimiser"),
        (lambda: optim.tunable(optim.sgd, nesterov=False), ValueError, "no hyperparameter that is a float"),
        (lambda: optim.tunable(optim.sgd, lr=-1.0), ValueError, "lr must be"),
        (lambda: optim.tunable(optim.sgd, lr=0.1, momentum=0.0), ValueError, "momentum=0 .*leave it out"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
