"""The range test for learning rates: what it finds, and that it leaves no trace."""

from __future__ import annotations

import dataclasses
import math
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import tree

from ..jobs import build, make_average
from ..strategies import cases, examples

TARGET = torch.tensor([3.0, -2.0])


def quadratic(params, buffers, batch, key):
    return ((params["w"] - TARGET) ** 2).sum() + 0.1 * (params["w"] * torch.randn(2)).sum()


def smooth(params, buffers, batch, key):
    return ((params["w"] - TARGET) ** 2).sum()


def find(make=lambda lr: hf.make_step(quadratic, hf.optim.sgd(lr)), state=None, **changes):
    state = state or hf.init_state({"w": torch.zeros(2)}, hf.optim.sgd(0.1))
    return hf.find_learning_rate(make, state, hf.Loader([0.0] * 4, 2), **changes)


def test_the_suggestion_lowers_the_loss_and_divergence_ends_the_test():
    """On a quadratic, whose rates are stable up to 1."""
    found = find(lo=1e-4, hi=100.0)
    assert 0.01 < found.suggestion < 1.0
    assert found.diverged
    assert 1.0 < found.rates[-1] < 100.0
    assert found.losses[0] == float((TARGET**2).sum())
    assert found.rates[found.smoothed.index(min(found.smoothed))] > found.suggestion
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 100
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.diverged = False


def test_rates_grow_by_one_factor_from_lo_to_hi():
    """As many as there are iterations, where nothing diverges; the losses are those of a run with that schedule."""
    found = find(lambda lr: hf.make_step(smooth, hf.optim.sgd(lr)), lo=1e-5, hi=1e-2, iterations=31)
    assert not found.diverged
    assert found.rates[0] == 1e-5
    assert found.rates[-1] == pytest.approx(1e-2)
    ratios = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 30)
    weights = torch.zeros(2)
    for rate, loss in zip(found.rates, found.losses, strict=True):
        assert float(((weights - TARGET) ** 2).sum()) == pytest.approx(loss, rel=1e-5)
        weights -= rate * 2 * (weights - TARGET)


def test_it_prints_as_a_curve_and_a_table():
    """A sparkline, some rows, the suggestion and how it ended."""
    lines = str(find(lo=1e-4, hi=100.0)).splitlines()
    assert set(lines[0]) <= set("▁▂▃▄▅▆▇█!")
    assert lines[1].split() == ["rate", "loss", "smoothed"]
    assert sum("<- steepest" in line for line in lines) == 1
    assert lines[-1].startswith("suggestion: ")
    assert "diverged at" in lines[-1]
    assert len(lines) < 20
    flat = find(lambda lr: hf.make_step(lambda p, b, x, k: 0 * p["w"].sum() + 1.0, hf.optim.sgd(lr)))
    assert flat.suggestion is None
    assert str(flat).splitlines()[-1].startswith("no rate lowers the loss (100 iterations, up to 10)")


@settings(deadline=None, max_examples=examples(4))
@given(cases(max_iterations=4, sources=("loader", "dataloader", "stream")), st.integers(3, 6))
def test_state_loader_and_later_runs_have_the_same_bits(case, iterations):
    """With and without a test before, on any job; and the global generators are as they were."""
    case = dataclasses.replace(
        case, handwritten=False, checkpoint_every=None, retention=None, validate_every=None, early_stop=None
    )
    job = build(case)
    source, before = job.new_loader(), tree.digest(job.state)
    drawn = torch.random.get_rng_state()

    def make(lr):
        inner = hf.optim.loss_scaled(hf.optim.adamw(lr)) if case.precision == "fp16" else hf.optim.adamw(lr)
        return hf.make_step(loss_fn, inner, precision=case.precision, average=make_average(case))

    found = hf.find_learning_rate(make, job.state, source, iterations=iterations)
    assert 1 <= len(found.losses) <= iterations
    assert tree.digest(job.state) == before
    assert torch.equal(torch.random.get_rng_state(), drawn)
    after = hf.run(job.step, job.state, source, job.cfg).state
    assert tree.equal(after, hf.run(job.step, job.state, job.new_loader(), job.cfg).state)


def loss_fn(params, buffers, batch, key):
    return sum((leaf.float() ** 2).sum() for leaf in tree.leaves(params)) * torch.rand(()) + 0 * batch[0].sum()


def test_a_trained_state_is_tested_with_a_fresh_optimiser():
    """In the middle of a run, and with the rate in the state; hand-written steps take their memory as it is."""
    optimizer = hf.optim.tunable(hf.optim.adamw, lr=0.01)
    state = hf.init_state({"w": torch.zeros(2)}, optimizer)
    cfg = hf.RunConfig("iteration", 5, progress=False)
    trained = hf.run(hf.make_step(quadratic, optimizer), state, hf.Loader([0.0] * 4, 2), cfg).state
    found = find(lambda lr: hf.make_step(smooth, hf.optim.tunable(hf.optim.adamw, lr=lr)), trained, iterations=5)
    assert found.losses[0] == float(((trained.params["w"] - TARGET) ** 2).sum())

    def by_hand(lr):
        def step(state, batch):
            rate = lr(state.opt_state["count"])
            loss = ((state.params["w"] - TARGET) ** 2).sum()
            new = {"w": state.params["w"] - rate * 2 * (state.params["w"] - TARGET)}
            return state.replace(params=new, opt_state={"count": state.opt_state["count"] + 1}, metrics={"error": loss})

        return step

    manual = hf.init_state({"w": torch.zeros(2)}, opt_state={"count": 0})
    losses = find(by_hand, manual, iterations=20, loss="error").losses
    known = find(lambda lr: hf.make_step(smooth, hf.optim.sgd(lr)), iterations=20).losses
    assert losses == pytest.approx(known, rel=1e-5)


def test_updates_that_are_left_out_do_not_count():
    """The rate is a function of the updates, as with an optimiser that makes one of two."""
    found = find(lambda lr: hf.make_step(quadratic, hf.optim.every(2, hf.optim.sgd(lr))), iterations=6, lo=1e-6)
    assert found.rates == tuple(sorted(found.rates))
    assert len(set(found.rates)) == 3


def test_a_loss_that_is_not_finite_ends_it():
    """The last point says so, and the suggestion comes from those before."""
    found = find(lambda lr: hf.make_step(lambda p, b, x, k: smooth(p, b, x, k) ** 8, hf.optim.sgd(lr)), hi=1e9)
    assert found.diverged
    assert not math.isfinite(found.smoothed[-1])
    assert str(found).startswith(("▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"))
    assert "!" in str(found).splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"iterations": 2}, ValueError, "iterations must be an integer of at least 3"),
        ({"lo": 1.0, "hi": 0.1}, ValueError, "rates must grow"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be"),
        ({"diverges": 0}, ValueError, "diverges must be positive"),
        ({"make": hf.optim.sgd(0.1)}, TypeError, "make must be a function of the rate"),
        ({"make": lambda lr: None}, TypeError, "step must be a function"),
        ({"make": lambda lr: hf.make_step(quadratic, hf.optim.sgd(0.1))}, ValueError, "must hand lr itself"),
        ({"loss": "nll"}, ValueError, "wrote no metric 'nll' but learning_rate, loss"),
        ({"make": lambda lr: lambda state, batch: 1 / 0}, hf.RunFailed, "division by zero"),
    ],
)
def test_a_mistake_is_named(changes, error, message):
    """Each with its remedy."""
    with pytest.raises(error, match=message):
        find(**changes)


def test_who_interrupts_the_test_interrupts_what_follows_it_too():
    """Its result is no reason to begin the training that would come next."""

    def interrupted(params, buffers, batch, key):
        signal.raise_signal(signal.SIGINT)
        return smooth(params, buffers, batch, key)

    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        find(lambda lr: hf.make_step(interrupted, hf.optim.sgd(lr)))
    assert signal.getsignal(signal.SIGINT) is previous
