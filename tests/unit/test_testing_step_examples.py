"""check_step on generated batches and states: what one batch does not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import JobFailed, LawBroken, check_step, strategies
from helios_fn.testing.first import check_first_step

from ..laws.user_parts import OPTIMIZER, Points, job, loss_fn, predicted, start

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
    assert "['y'][" in found


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
        check_step(lambda state, batch: state.replace(metrics={"loss": batch}), start(), torch.tensor(1.0), examples=3)


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
