"""check_step: what the unit test of a training step finds, and how it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios_fn as hf
from helios_fn.testing import LawBroken, check_step

OPTIMIZER = hf.optim.sgd(0.1)
BATCH = torch.ones(2)
PARAMS = {"far": torch.ones(1), "w": torch.ones(2)}


def state(**params) -> hf.TrainState:
    return hf.init_state({**PARAMS, **params}, OPTIMIZER)


def made(loss_fn):
    return hf.make_step(loss_fn, OPTIMIZER)


def plain(params, buffers, batch, key):
    return ((params["w"] * batch) ** 2).sum()


def broken(step, *, at=None, **keywords) -> str:
    with pytest.raises(LawBroken) as caught:
        check_step(step, state() if at is None else at, BATCH, **keywords)
    return str(caught.value)


def test_a_parameter_without_gradient_is_named_unless_it_may_have_none():
    """Weight decay does not hide it, as it would from a look at the updates."""
    optimizer = hf.optim.adamw(0.1, weight_decay=0.1)
    step, at = hf.make_step(plain, optimizer), hf.init_state(PARAMS, optimizer)
    check_step(step, at, BATCH, expect_updates=True)
    assert "zero by 1 of 2 parameters: far" in broken(step, at=at, expect_gradients=True)
    check_step(step, at, BATCH, expect_gradients=True, except_for=["far"])


def test_a_step_of_several_micro_batches_has_one_gradient():
    """The mean over all of them is what is looked at."""
    batch = hf.MicroBatches((BATCH, BATCH), 0, 2)
    check_step(made(plain), state(), batch, expect_gradients=True, except_for=["far"])


def test_the_gradients_of_a_step_by_hand_come_from_its_loss():
    """The loss is handed over, as make_step takes it; without it the error says so."""
    grad = hf.grad(lambda params, batch: plain(params, None, batch, None))

    def step(state, batch):
        grads = grad(state.params, batch)
        params, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        return state.replace(params=params, opt_state=opt_state)

    with pytest.raises(ValueError, match="loss_fn="):
        check_step(step, state(), BATCH, expect_gradients=True)
    assert "parameters: far" in broken(step, loss_fn=plain)
    check_step(step, state(), BATCH, loss_fn=plain, except_for=["far"])


def test_a_gradient_that_is_not_finite_is_found_behind_a_finite_loss():
    """The square root has slope infinity at 0; with gradients the parameter is named."""
    step = made(lambda params, buffers, batch, key: params["w"].sum() + params["far"].sqrt().sum())
    at = state(far=torch.zeros(1))
    assert "a gradient or a new parameter is not" in broken(step, at=at)
    assert "the gradient is not, by far" in broken(step, at=at, expect_gradients=True)


def test_a_metric_that_promises_to_be_positive_is_held_to_it():
    """Only where it was promised: a log likelihood may be what it likes."""
    step = made(lambda params, buffers, batch, key: -plain(params, buffers, batch, key))
    check_step(step, state(), BATCH)
    assert "metrics['loss'] is -2.0" in broken(step, non_negative=["loss"])
    with pytest.raises(ValueError, match=r"non_negative names \['los'\]"):
        check_step(step, state(), BATCH, non_negative=["los"])


def test_a_kernel_that_is_not_deterministic_is_named():
    """Torch's own judgement; who knows better says so."""

    def loss_fn(params, buffers, batch, key):
        return (params["w"] * torch.zeros(2).put_(torch.tensor([0, 0]), batch)).sum()

    assert "non-deterministic: put_." in broken(made(loss_fn))
    check_step(made(loss_fn), state(), BATCH, deterministic_kernels=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_drawn_by_the_numpy_generator_of_a_module_differs():
    """A generator of the step's own is advanced by each call."""
    generator = torch.Generator()

    def loss_fn(params, buffers, batch, key):
        return (params["w"] * torch.rand(2, generator=generator)).sum()

    text = broken(made(loss_fn))
    assert "differ in" in text
    assert "generator of its own" in text


def test_ordinary_dropout_and_batch_norm_are_not_accused():
    """A step with noise and running statistics passes with every check switched on."""

    def network():
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2))

    model, params, buffers = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch)
        return nn.functional.cross_entropy(logits, torch.tensor([0, 1] * 4)), hf.Aux(buffers=buffers)

    at = hf.init_state(params, OPTIMIZER, buffers=buffers)
    batch = torch.linspace(-1, 1, 16).view(8, 2)
    check_step(
        made(loss_fn),
        at,
        batch,
        expect_gradients=True,
        expect_updates=True,
        non_negative=["loss"],
        except_for=["0.bias"],
    )
