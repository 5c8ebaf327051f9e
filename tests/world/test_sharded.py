"""Training with sharded params is training: the same numbers, whatever the number of processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf

from ..strategies import examples
from . import jobs
from .jobs import Training


def close(left, right) -> bool:
    pairs = zip(hf.tree.tensors(left), hf.tree.tensors(right), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6) for a, b in pairs)


TRAININGS = st.builds(
    Training,
    optimizer=st.sampled_from(sorted(jobs.OPTIMIZERS)),
    micro_batches=st.sampled_from((4, 8)),
    # Of two samples batch norm makes nearly -1 and 1, whatever they are: the gradient behind it is rounding.
    sizes=st.tuples(*[st.integers(3, 5)] * 8),
    average=st.sampled_from((None, 0.9)),
    donate=st.booleans(),
)


@settings(deadline=None, max_examples=examples(6))
@given(training=TRAININGS, wide=st.booleans())
def test_sharded_training_equals_training_in_one_process_to_rounding(two, four, training, wide):
    """Dropout by micro-batch, ragged weights, any optimiser for shards, average, donation; and all ranks agree.

    To rounding only: each micro-batch's gradients are summed over processes before those of the next are added, and a
    fused kernel rounds the last elements of a piece, which it does not take in fours, otherwise.
    """
    results = (four if wide else two).run(jobs.train, training, 3)
    assert all(hf.tree.equal(result, results[0]) for result in results)
    assert close(results[0], jobs.train(training._replace(donate=False), 3, sharded=False))


@pytest.mark.parametrize("optimizer", ["adamw foreach", "rmsprop", "lion", "decayed"])
def test_with_one_micro_batch_for_each_process_the_bits_are_those_of_one_process(four, optimizer):
    """Then the sum over processes is the tree over micro-batches; the kernels must work element by element."""
    training = Training(optimizer, 4, (3, 4, 5, 2), average=0.9)
    assert hf.tree.equal(four.run(jobs.train, training, 3)[0], jobs.train(training, 3, sharded=False))


def test_the_same_number_of_processes_gives_the_same_bits(two):
    """Twice the same training."""
    training = Training("clipped", 4, (3, 4, 5, 2))
    assert hf.tree.equal(two.run(jobs.train, training, 2)[0], two.run(jobs.train, training, 2)[1])


def test_processes_may_use_different_params(two):
    """Every gathering's backward pass is a collective; none is left out because a loss did not need it."""
    for grads in two.run(jobs.parts_used_by_one):
        assert torch.equal(grads["a"], torch.full((4, 2), 2 * 2 * 3 / 4))
        assert torch.equal(grads["b"], torch.full((3,), 3 * 2 * 1 / 4))
        assert torch.equal(grads["unused"], torch.zeros(2))


@pytest.mark.parametrize(("weights", "mean"), [((3, 1), 1.25), ((0, 2), 2.0), ((0, 0), 0.0), ((1.5, 0.5), 1.25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_means_by_weight(two, weights, mean, dtype):
    """A process of weight 0 takes part in the collectives, and its NaN in nothing."""
    for grads in two.run(jobs.weightless, weights, dtype):
        assert torch.equal(grads["w"], torch.full((5,), mean, dtype=dtype))


def test_layers_can_be_gathered_one_at_a_time_and_again(two):
    """Inside of activation checkpointing, with the bits of gathering all at once."""
    for by_layer, at_once in two.run(jobs.recomputed):
        assert hf.tree.equal(by_layer, at_once)


def test_clipping_sees_all_shards(two):
    """The norm is that of the whole gradient, replicated leaves counted once."""
    leaves = {"a": torch.arange(10.0).view(5, 2), "one": torch.full((1,), 7.0), "plain": torch.tensor(3.0)}
    transform = hf.optim.clip_by_global_norm(2.0)
    expected = transform.update(leaves, transform.init(leaves), leaves)[0]
    for found in two.run(jobs.clipped, leaves, 2.0):
        assert close(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_bad_element_in_one_shard_is_seen_by_all(two, value):
    """Also by the processes whose own shards are finite: else they would part ways."""
    bad = value != 1.0
    for first_bad, skipped, params in two.run(jobs.with_a_bad_element, value):
        assert (first_bad, skipped) == ((0, 1) if bad else (-1, 0))
        assert torch.equal(params, torch.zeros(4) if bad else torch.full((4,), -0.1))


def test_the_driver_watches_the_memory_of_shards(two):
    """A write to a shard is noticed, and a kept one is not given away."""
    for messages, is_private in two.run(jobs.guarded):
        assert len(messages) == 2
        assert all("params['w']" in message for message in messages)
        assert is_private


MESSAGES = {
    "uneven": "ValueError: this iteration has 3 micro-batches for 2 processes",
    "plain batch": "ValueError: this iteration has 1 micro-batches for 2 processes",
    "not gathered": "TypeError: the loss uses a sharded tensor",
    "higher order": "TypeError: argument 0 of the function holds sharded tensors",
    "transform": "TypeError: sharded params cannot be gathered in a compiled region",
    "by hand": "TypeError: sharded params were gathered in a gradient function",
    "sam": "TypeError: sam()",
    "two dimensions": "ValueError: the mesh must have one dimension",
    "half the processes": "ValueError: the mesh of the sharded params has 1 of the job's 2 processes",
    "partial": "TypeError: ['w'] is placed as",
    "half precision": "TypeError: ['w'] is float16",
    "buffer": "TypeError: the buffer ['b'] is sharded and changes",
    "twice": "TypeError: ['w'] is sharded already",
    "no mesh": "TypeError: mesh must be",
    "rule": "ValueError: rule must return [Shard(dim)]",
    "other pieces": "ValueError: grads['w'] is cut into other pieces than its parameter",
    "digest": "TypeError: a sharded tensor, float32[4, 4]",
    **dict.fromkeys(
        ["adafactor", "muon", "lookahead", "from_torch", "adaptive_clip"],
        "TypeError: params['w'] is sharded (a DTensor)",
    ),
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_what_would_be_wrong_is_refused_by_every_process(two, name):
    """Before the first collective, so that nobody waits; by name, with the remedy."""
    for message in two.run(jobs.refused, name):
        assert message.startswith(MESSAGES[name]), message


@pytest.mark.soak
def test_a_compiled_step_is_refused(two):
    """It says that sharded params are the reason."""
    for message in two.run(jobs.compiled):
        assert "sharded" in message, message
