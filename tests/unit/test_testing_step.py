"""check_step: what the unit test of a training step finds, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import helios_fn as hf
from helios_fn.testing import JobFailed, LawBroken, check_step, strategies
from helios_fn.testing.first import check_first_step

from ..laws.user_parts import Points, job, loss_fn, predicted, start

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


# Generated examples


ROWS = Points()[[0, 1, 2, 3]]


def broken_by(step, *, on=ROWS, examples=60, **keywords) -> str:
    """The verdict on generated examples, with their note; the quick form finds nothing."""
    check_step(step, start(), on)
    with pytest.raises(LawBroken) as caught:
        check_step(step, start(), on, examples=examples, **keywords)
    return "\n".join([str(caught.value), *caught.value.__notes__])


def test_a_sound_step_holds_on_generated_batches_and_states():
    """The state that comes back is that of the given batch, with or without micro-batches."""
    step = hf.make_step(loss_fn, OPTIMIZER)
    found = check_step(step, start(), ROWS, examples=20, expect_gradients=True, non_negative=["loss"])
    assert hf.tree.equal(found, check_step(step, start(), ROWS))
    check_step(step, start(), hf.MicroBatches((ROWS, ROWS), 0, 2), examples=10)


def test_a_step_that_fails_on_a_shorter_batch_is_told_the_shortest():
    """Its size is written into it."""

    def fixed(params, buffers, batch, key):
        return loss_fn(params, buffers, {**batch, "x": batch["x"].reshape(-1, 4, 3).flatten(0, 1)}, key)

    found = broken_by(hf.make_step(fixed, OPTIMIZER))
    assert found.startswith("the step fails on a batch of 2 samples (0, 1); on the batch that was handed over it does")
    assert "its last one has fewer samples" in found
    assert "value=a batch of 2 samples (0, 1)" in found


def test_a_loss_that_is_not_finite_on_some_values_is_told_which():
    """A target that is its neighbour's: the spread is 0."""

    def spread(params, buffers, batch, key):
        loss, aux = loss_fn(params, buffers, batch, key)
        return loss / batch["y"].diff().abs().min(), aux

    found = broken_by(hf.make_step(spread, OPTIMIZER), examples=200)
    assert "metrics['loss'] is " in found
    assert "['y'][0] = " in found


def test_a_fault_that_begins_later_is_found_on_a_state_that_was_reached():
    """Metrics may not change their names during a run, and what is drawn later is drawn all the same."""
    plain = hf.make_step(loss_fn, OPTIMIZER)

    def late(state, batch):
        new = plain(state, batch)
        return new if state.counters.iteration < 2 else new.replace(metrics={**new.metrics, "x": new.metrics["loss"]})

    found = broken_by(late)
    assert ", after 2 iterations: the step gives the metrics ['loss', 'learning_rate', 'x']" in found


def test_a_fault_that_depends_on_noise_is_found_with_its_seed():
    """The key of the state is another one in some of the examples."""

    def rare(params, buffers, batch, key):
        loss, aux = loss_fn(params, buffers, batch, key)
        return (loss - 1e9 * (hf.random.uniform(key, ()) < 0.2)), aux

    found = broken_by(hf.make_step(rare, OPTIMIZER), non_negative=["loss"])
    assert "with seed " in found
    assert "promises to be at least 0" in found


def test_promises_about_gradients_are_kept_to_the_batch_that_was_given():
    """On others a gradient may well be zero, but must be finite."""

    def masked(params, buffers, batch, key):
        return (predicted(params, batch["x"]) * (batch["y"] > 0)).sum()

    step = hf.make_step(masked, OPTIMIZER)
    check_step(step, start(), ROWS, examples=30, expect_gradients=True)


def test_batches_and_states_come_from_strategies_of_ones_own():
    """Their values are shown; without a number of examples they would not be looked at, so that is refused."""
    step = hf.make_step(lambda params, buffers, batch, key: (1 / batch["x"]).sum() * params["w"].sum(), OPTIMIZER)
    spec = {"x": strategies.Leaf(3), "y": strategies.Leaf()}
    found = broken_by(step, batches=strategies.batches(spec), states=st.just(start()))
    assert "on {'x': tensor([[0., 0., 0.]]), 'y': tensor([0.])}, on a state from states: metrics['loss'] is" in found
    with pytest.raises(ValueError, match="say how many, by examples="):
        check_step(step, start(), ROWS, states=st.just(start()))


MIXED = {
    "x": torch.linspace(-1, 1, 15).view(5, 3),
    "label": torch.tensor([0, 2, 2, 5, 0]),
    "mask": (torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), np.array([True, False, True, True, True])),
}


@settings(max_examples=60)
@given(strategies.batches_like(MIXED))
def test_generated_batches_are_of_the_kind_of_the_given_one(batch):
    """Structure and dtypes are kept, numbers stay within those there are; classes and masks stay what they were."""
    assert hf.tree.structure(batch) == hf.tree.structure(MIXED)
    assert {len(leaf) for leaf in hf.tree.leaves(batch)} <= {2, 3, 4, 5}
    assert len({len(leaf) for leaf in hf.tree.leaves(batch)}) == 1
    assert [leaf.dtype for leaf in hf.tree.leaves(batch)] == [leaf.dtype for leaf in hf.tree.leaves(MIXED)]
    assert batch["x"].abs().max() <= 1
    assert {*batch["label"].tolist()} <= {0, 2, 5}
    assert {*batch["mask"][0].tolist()} <= {0.0, 1.0}


def test_a_batch_of_no_one_length_is_refused():
    """Nobody knows what its samples are; the law by name leaves such a batch as it is."""
    with pytest.raises(ValueError, match="first dimension: leaf"):
        check_step(made(plain), state(), torch.tensor(1.0), examples=3)


def test_the_first_step_of_a_job_meets_batches_as_short_as_its_loader_makes_them():
    """Batch statistics of one sample: an error where there is such a batch, and none where there is not."""

    def normed(params, buffers, batch, key):
        if len(batch["y"]) == 1:
            raise ValueError("more than one value")
        return loss_fn(params, buffers, batch, key)

    check_first_step(job(loss=normed), 30)
    with pytest.raises(LawBroken, match=r"a batch of 1 sample \(0\).*ValueError: more than one value"):
        check_first_step(job(loss=normed, loader=lambda: hf.Loader(Points(9), 4)), 30)


def test_the_first_step_of_a_job_with_odd_batches_is_tried_on_other_states():
    """Where samples cannot be told from each other."""
    one = job(loss=lambda params, buffers, batch, key: loss_fn(params, buffers, batch[0], key))
    loader = hf.Loader(Points(), 4, collate=lambda samples: (torch.utils.data.default_collate(samples), "text"))
    check_first_step(one.__class__(one.step, one.state, loader, one.cfg), 5)
    with pytest.raises(JobFailed, match="in its first step"):
        check_first_step(one, 5)
