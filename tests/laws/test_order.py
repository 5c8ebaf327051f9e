"""Law 5: each epoch visits each sample exactly once, as the training step sees it."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import helios_fn as hf

from ..strategies import examples


def seen_by_the_step(samples: int, batch_size: int, epochs: int, seed: int, **loader) -> list[list[int]]:
    """The sample numbers in the order in which a step received them, epoch by epoch."""
    epochs_seen: list[list[int]] = [[] for _ in range(epochs)]

    def step(state, batch):
        epochs_seen[state.cursor.epoch].extend(batch[0].tolist())
        return state

    state = hf.init_state({"w": torch.zeros(1)}, hf.optim.sgd(0.1), seed=seed)
    data = hf.Loader(TensorDataset(torch.arange(samples)), batch_size, **loader)
    hf.run(step, state, data, hf.RunConfig(unit="epoch", total=epochs, progress=False, purity_checks=0))
    return epochs_seen


@settings(max_examples=examples(40))
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(),
)
def test_each_epoch_visits_each_sample_once(samples, batch_size, epochs, seed, shuffle):
    """No sample is repeated, none is left out, whatever the ragged tail."""
    for epoch in seen_by_the_step(samples, batch_size, epochs, seed, shuffle=shuffle):
        assert Counter(epoch) == Counter(range(samples))


@settings(max_examples=examples(20))
@given(samples=st.integers(20, 40), batch_size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_epochs_and_seeds_have_orders_of_their_own(samples, batch_size, seed):
    """The order changes with the epoch and with the seed; seed s, epoch 1 is not seed s + 1, epoch 0."""
    first, second = seen_by_the_step(samples, batch_size, 2, seed)
    other, _ = seen_by_the_step(samples, batch_size, 2, seed + 1)
    assert first != second
    assert first != other
    assert second != other


@settings(max_examples=examples(20))
@given(samples=st.integers(1, 40), batch_size=st.integers(1, 9), epochs=st.integers(1, 2))
def test_the_batch_size_does_not_change_the_order(samples, batch_size, epochs):
    """Batches are windows of one order, so cutting it otherwise gives the same sequence."""
    assert seen_by_the_step(samples, batch_size, epochs, 3) == seen_by_the_step(samples, samples, epochs, 3)
