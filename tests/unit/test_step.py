"""The usual step: what it logs, and how it answers mistakes in the words of those who make them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.types import Aux

PARAMS = {"w": torch.tensor([1.0, 2.0])}
BATCH = torch.tensor([3.0, -1.0])
SGD = hf.optim.sgd(0.1)
OTHER = torch.ones(2, requires_grad=True)


def good(params, buffers, batch, key):
    return (params["w"] * batch).sum()


def stepped(loss_fn, *, batch=BATCH, optimizer=SGD, params=PARAMS, **keywords):
    return hf.make_step(loss_fn, optimizer)(hf.init_state(params, optimizer, **keywords), batch)


def returning(make):
    """A loss_fn that returns what ``make`` makes of a proper loss."""
    return lambda params, buffers, batch, key: make(good(params, buffers, batch, key))


def no_loss():
    return torch.zeros(())


def test_a_step_descends_and_logs_loss_metrics_and_rate():
    state = stepped(returning(lambda loss: (loss, Aux(metrics={"twice": 2 * loss}))))
    assert tree.equal(state.params["w"], torch.tensor([1.0, 2.0]) - 0.1 * BATCH)
    assert list(state.metrics) == ["loss", "twice", "learning_rate"]
    assert [float(value) for value in state.metrics.values()] == [1.0, 2.0, 0.1]
    assert tree.equal(stepped(returning(lambda loss: (loss, None))).params, state.params)


@pytest.mark.parametrize("batch", [BATCH, hf.MicroBatches((BATCH, BATCH), 0, 2)], ids=["one", "two"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["autograd", "torch.func"])
@pytest.mark.parametrize(
    "loss_fn",
    [
        returning(torch.Tensor.detach),
        returning(lambda loss: torch.tensor(loss.item())),
        returning(lambda loss: (loss.detach(), Aux(weight=torch.tensor(2)))),
        lambda params, buffers, batch, key: (OTHER * batch).sum(),
    ],
    ids=["detached", "made anew", "with a weight", "other weights"],
)
def test_a_loss_that_does_not_depend_on_the_params_is_refused(loss_fn, requires_grad, batch):
    """It would train nothing, in silence."""
    params = {"w": PARAMS["w"].clone().requires_grad_(requires_grad)}
    with pytest.raises(ValueError, match="does not depend on params: was it detached"):
        stepped(loss_fn, batch=batch, params=params)


@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0)])
def test_a_micro_batch_without_weight_may_have_a_constant_loss(weight):
    """There is nothing in it that a loss could be computed from."""
    state = stepped(lambda params, buffers, batch, key: (no_loss(), Aux(weight=weight)))
    assert tree.equal(state.params, PARAMS)


def test_a_loss_of_some_of_the_params_will_do():
    state = stepped(good, params={**PARAMS, "unused": torch.ones(3)})
    assert tree.equal(state.params["unused"], torch.ones(3))


EXPECTED = r"loss_fn must return a 0-d loss tensor or \(loss, hf.Aux\(...\)\), got "


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda loss: loss.item(), TypeError, EXPECTED + "float 1.0: .*leave .item"),
        (lambda loss: (loss.item(), Aux()), TypeError, EXPECTED + r"a tuple of 2: \(float 1.0, hf.Aux\(...\)\)"),
        (lambda loss: None, TypeError, EXPECTED + "NoneType None: is there a return"),
        (lambda loss: {"loss": loss}, TypeError, EXPECTED + "dict"),
        (lambda loss: (loss, loss, loss), TypeError, EXPECTED + r"a tuple of 3: \(float32\[\], float32"),
        (lambda loss: Aux(loss), TypeError, EXPECTED + "an Aux alone"),
        (lambda loss: (loss, {"acc": 1.0}), TypeError, EXPECTED + r".*write \(loss, hf.Aux\(metrics=...\)\)"),
        (lambda loss: (loss, loss), TypeError, EXPECTED + r"a tuple of 2: \(float32\[\], float32\[\]\)"),
        (lambda loss: loss.long(), TypeError, r"must be a floating point tensor, got int64\[\]"),
        (lambda loss: loss * BATCH, ValueError, r"float32\[2\]: take its mean"),
    ],
)
def test_what_is_no_loss_is_refused_in_the_words_of_loss_fn(make, error, words):
    with pytest.raises(error, match=words):
        stepped(returning(make))


@pytest.mark.parametrize("buffers", [None, {}, {"mean": torch.zeros(2)}])
@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"acc": 1.0}, "first argument is buffers: write metrics=... if 'acc' are metrics"),
        (32, "first argument is buffers, got int 32: write weight=..."),
    ],
)
def test_metrics_or_a_weight_in_the_place_of_buffers_are_noticed(first, words, buffers):
    with pytest.raises(TypeError, match=words):
        stepped(returning(lambda loss: (loss, Aux(first))), buffers=buffers)


class Stats(NamedTuple):
    mean: torch.Tensor


@pytest.mark.parametrize("buffers", [{}, {"mean": BATCH}, (BATCH,), BATCH, 3, Stats(BATCH)])
def test_buffers_of_any_structure_are_taken(buffers):
    state = stepped(returning(lambda loss: (loss, Aux(tree.map(lambda leaf: leaf + 1, buffers)))), buffers=buffers)
    assert tree.equal(state.buffers, tree.map(lambda leaf: leaf + 1, buffers))


@pytest.mark.parametrize("name", ["loss", "learning_rate"])
def test_metrics_may_not_take_the_names_that_the_step_logs(name):
    with pytest.raises(ValueError, match=f"Aux.metrics may not have '{name}'"):
        stepped(returning(lambda loss: (loss, Aux(metrics={name: loss}))))


def test_a_state_without_optimiser_memory_is_refused():
    with pytest.raises(ValueError, match=r"opt_state is None: .*hf.init_state\(params, optimizer\)"):
        hf.make_step(good, hf.optim.adamw())(hf.init_state(PARAMS), BATCH)
    without_weight = hf.make_step(lambda *_: (no_loss(), Aux(weight=0)), SGD)
    with pytest.raises(ValueError, match="opt_state is None"):
        without_weight(hf.init_state(PARAMS), BATCH)


ADAMW, MOMENTUM = hf.optim.adamw(0.1), hf.optim.sgd(0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("maker", "user", "words"),
    [
        (SGD, ADAMW, r"a NativeState\) was not made by adamw\(.*has no \"slots\['w'\]\['exp_avg'\]\""),
        (ADAMW, MOMENTUM, r"was not made by sgd\("),
        (ADAMW, hf.optim.every(2, ADAMW), r"a NativeState\) was not made by every\("),
        (ADAMW, hf.optim.chain(hf.optim.clip_by_value(1.0), ADAMW), r"was not made by chain\("),
        (hf.optim.chain(hf.optim.clip_by_value(1.0), ADAMW), ADAMW, r"a tuple\) was not made by adamw\("),
    ],
)
def test_the_memory_of_another_optimiser_is_refused_naming_both(maker, user, words):
    with pytest.raises(ValueError, match=words):
        hf.make_step(good, user)(hf.init_state(PARAMS, maker), BATCH)


def test_a_failure_of_the_optimiser_itself_passes_through():
    """The state's memory fits, so it is not blamed."""
    optimizer = hf.optim.sgd(lambda count: float("nan"))
    with pytest.raises(ValueError, match="returned nan at count 0"):
        stepped(good, optimizer=optimizer)


@pytest.mark.parametrize("entry", [lambda it: hf.make_step(good, it), lambda it: hf.init_state(PARAMS, it)])
@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            torch.optim.AdamW([torch.ones(1)]),
            r"an instance of AdamW: write hf.optim.from_torch\(torch.optim.AdamW, lr=",
        ),
        (torch.optim.AdamW, r"the class AdamW: write hf.optim.from_torch\(torch.optim.AdamW, lr="),
        (hf.optim.clip_by_global_norm(1.0), r"write hf.optim.chain\(transform, hf.optim.adamw"),
        (hf.optim.adamw, r"got adamw: call it, as in adamw\(...\)"),
        ("adamw", "an instance of str: write hf.optim.adamw"),
    ],
)
def test_what_is_no_optimiser_is_refused_with_the_remedy(optimizer, words, entry):
    with pytest.raises(TypeError, match=words):
        entry(optimizer)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hf.make_step(SGD, good), "loss_fn must be a function of .params, buffers, batch, key., got Optimizer"),
        (lambda: hf.make_step(lambda params, batch: 0, SGD), "has the signature .params, batch.: too many positional"),
        (lambda: hf.make_step(good, None), "optimizer must be"),
        (lambda: hf.make_step(good, SGD, average=hf.ema), r"such as hf.ema\(0.999\)"),
        (lambda: hf.make_step(good, SGD, average=0.99), r"such as hf.ema\(0.999\)"),
        (lambda: hf.init_state(PARAMS, SGD, average=hf.ema), r"such as hf.ema\(0.999\)"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_step(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("writes", [False, True])
def test_each_state_logs_the_rate_of_its_own_update(writes):
    """Also where it is what it was before, which costs less; and a write to one state's metrics reaches no other."""
    rates = [0.1, 0.1, 0.2, 0.1, 0.1]
    optimizer = hf.optim.sgd(lambda count: rates[count])
    step = hf.make_step(lambda params, buffers, batch, key: params["w"].square().sum(), optimizer)
    state = hf.init_state({"w": torch.ones(2)}, optimizer)
    for rate in rates:
        state = step(state.replace(metrics={}), None)
        assert state.metrics["learning_rate"].item() == rate
        if writes:
            state.metrics["learning_rate"].zero_()


def test_a_step_tells_what_it_is_made_of():
    """A notebook shows the optimiser and the mode, not an address."""
    step = hf.make_step(lambda params, buffers, batch, key: params["w"].sum(), hf.optim.sgd(0.5), compile="grad")
    assert repr(step) == f"make_step(..., {hf.optim.sgd(0.5)!r}, compile='grad')"
    assert repr(hf.compile(hf.ensemble(step))) == f"compile(ensemble({step!r}))"
