"""Orders: every epoch visits each sample once, any window of it can be read at once, and the values are pinned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helios_fn import random
from helios_fn.data import CustomBatches, CustomOrder, Sequential, Shuffled, order
from helios_fn.data.permutation import READ_AHEAD, TRUE_SHUFFLE_LIMIT, Feistel

KEY = random.key(6691)
BIG = 10_000_000


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_small_epochs_visit_each_sample_once(n, seed, epoch):
    """Up to the limit of the true shuffle, an epoch is a permutation."""
    assert sorted(order.window(random.key(seed), 0, epoch, n, 0, n)) == list(range(n))


@given(n=st.integers(1, 70_000), seed=st.integers(0, 2**63))
@example(n=1, seed=0)
@example(n=2, seed=0)
@example(n=2**16, seed=1)
@example(n=2**16 + 1, seed=2)
@example(n=255**2, seed=3)
@example(n=255**2 + 1, seed=4)
@example(n=255 * 256 - 1, seed=5)
@settings(deadline=None, max_examples=60)
def test_the_network_is_a_bijection_for_every_size(n, seed):
    """Each sample stands at exactly one position, at sizes around squares, products and powers of two too."""
    images = Feistel(random.key(seed), n)(np.arange(n))
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(n))


@given(data=st.data(), n=st.sampled_from([1, 97, TRUE_SHUFFLE_LIMIT, TRUE_SHUFFLE_LIMIT + 1, 10**6, 10**12]))
@settings(deadline=None, max_examples=40)
def test_windows_do_not_depend_on_where_they_are_cut(data, n):
    """A window read after any other reading equals the same window read by itself."""
    read = Shuffled().open(KEY, 0, n)
    for _ in range(3):
        lo = data.draw(st.integers(0, n - 1))
        hi = data.draw(st.integers(lo, min(n, lo + 3000)))
        assert np.array_equal(read(lo, hi), Shuffled().open(KEY, 0, n)(lo, hi))


def test_reading_forward_across_the_read_ahead_gives_the_same_indices():
    """The seams of the cached windows cannot be seen."""
    read = Shuffled().open(KEY, 0, BIG)
    size = READ_AHEAD // 3 + 7
    pieces = [read(start, start + size) for start in range(0, 7 * size, size)]
    assert np.array_equal(np.concatenate(pieces), Feistel(KEY, BIG)(np.arange(7 * size)))


def test_golden_values():
    """Pinned for ever: checkpoints store positions, and other values for them would silently change resumed runs."""
    assert order.window(KEY, 0, 0, 10, 0, 10).tolist() == [0, 8, 6, 1, 2, 7, 4, 5, 9, 3]
    assert order.window(KEY, 0, 3, 1000, 500, 506).tolist() == [725, 235, 816, 829, 55, 453]
    big = order.window(KEY, 1, 2, BIG, 5_000_000, 5_000_006)
    assert big.tolist() == [6686336, 8073741, 2154567, 6715292, 8940992, 6682417]
    huge = order.window(random.key(0), 0, 0, 10**12, 10**12 - 3, 10**12)
    assert huge.tolist() == [365537048576, 505861324415, 794903552501]


def test_epochs_phases_and_seeds_have_orders_of_their_own():
    """Seed 1 at epoch 0 is not seed 0 at epoch 1, nor one phase another."""
    places = [(seed, phase, epoch) for seed in (0, 1) for phase in (0, 1) for epoch in (0, 1)]
    orders = {tuple(order.window(random.key(s), p, e, 50, 0, 50).tolist()) for s, p, e in places}
    assert len(orders) == len(places)


def test_all_orders_of_few_samples_are_about_equally_frequent():
    """4 samples have 24 orders; over 4,800 epochs each turns up about 200 times (6 standard deviations)."""
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        found = tuple(order.window(KEY, 0, epoch, 4, 0, 4).tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24
    assert all(abs(count - 200) < 6 * 14 for count in counts.values())


def test_the_network_spreads_neighbours():
    """Positions next to each other have uncorrelated images, and images cover the range evenly."""
    images = order.window(KEY, 0, 0, BIG, 0, 100_000).astype(np.float64)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    counts, _ = np.histogram(images, bins=100, range=(0, BIG))
    assert ((counts - 1000) ** 2 / 1000).sum() < 170  # chi-square, 99 degrees of freedom: mean 99, sd 14


def test_sequential_order_is_the_identity():
    """Positions are indices."""
    assert Sequential().open(KEY, 3, 10)(4, 7).tolist() == [4, 5, 6]


@pytest.mark.parametrize("give", [list, np.array, torch.tensor, iter, tuple])
def test_custom_orders_may_give_any_sequence_of_integers(give):
    """Lists, arrays, tensors and iterators are taken alike."""
    custom = CustomOrder(lambda key, epoch, n: give([2, 0, 1]))
    assert custom.open(KEY, 0, 3)(0, 2).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 1], ValueError, "gave 2 indices in epoch 0 and 3 were expected"),
        ([0, 1, 3], ValueError, "gave the index 3, outside of the dataset's 0 to 2"),
        ([0, 1, -1], ValueError, "gave the index -1"),
        ([0.0, 1.0, 2.0], TypeError, "must give integer indices, got float64"),
        ([[0], [1], [2]], TypeError, "must give integer indices"),
    ],
)
def test_custom_orders_are_checked(indices, error, message):
    """What a custom order gives must fit the dataset, and the message says what does not."""
    with pytest.raises(error, match=message):
        CustomOrder(lambda key, epoch, n: indices).open(KEY, 0, 3)


def test_custom_batches_are_checked():
    """As many batches as promised, and none of them empty."""
    with pytest.raises(ValueError, match="gave 1 batches in epoch 0 and 2 were expected"):
        CustomBatches(lambda key, epoch, n: [[0]], 2).open(KEY, 0, 3)
    with pytest.raises(ValueError, match="gave an empty batch"):
        CustomBatches(lambda key, epoch, n: [[0], []], 2).open(KEY, 0, 3)


def test_orders_have_names():
    """The name tells one order from another in a checkpoint."""
    assert [Shuffled().name, Sequential().name] == ["shuffled", "sequential"]
    assert CustomOrder(backwards).name == "custom backwards"
    assert CustomOrder(backwards, label="mine").name == "mine"


def backwards(key, epoch, n):
    return range(n - 1, -1, -1)
