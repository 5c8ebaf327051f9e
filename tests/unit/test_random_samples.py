"""Per-sample randomness: a function of (key, epoch, index), whatever the grouping."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.random import (
    ambient_fingerprint,
    drawn,
    fold_in,
    key,
    key_words,
    numpy_generator,
    preserved_globals,
    sample_generator,
    sample_torch_generator,
    sample_words,
    seed_globals,
)
from helios_fn.random.philox import philox_int

index_lists = st.lists(st.integers(0, 2**40), max_size=30)
LOW = 0xFFFFFFFF


def globals_after(words):
    with preserved_globals():
        seed_globals(words)
        python = random.random(), random.gauss(0, 1)
        return torch.rand(3).tolist(), python, np.random.rand(3).tolist(), np.random.randn()


def test_sample_words_never_change_between_versions():
    """They decide every augmentation of every sample."""
    assert sample_words(key(6691), 3, [0, 1, 2**40]).tolist() == [
        [4146917641, 2792605445, 1019741567, 3577093061],
        [1733535153, 1893509514, 3430656224, 1090521973],
        [1143602973, 651731584, 2914791586, 3859464493],
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**63))
@settings(max_examples=50)
def test_sample_words_are_the_block_of_the_specification(seed, epoch, index):
    seed_word, offset = key_words(fold_in(key(seed), epoch))
    r0, r1, r2, r3 = philox_int(offset & LOW, offset >> 32, 0, 1, seed_word & LOW, seed_word >> 32)
    expected = philox_int(index & LOW ^ r3, index >> 32, r2, 5, r0, r1)
    assert sample_words(key(seed), epoch, np.array([index])).tolist() == [list(expected)]


@given(index_lists, st.integers(0, 30), st.integers(0, 5))
@settings(max_examples=50)
def test_any_grouping_gives_the_same_rows(indices, cut, epoch):
    whole = sample_words(key(1), epoch, indices)
    assert whole.dtype == np.uint32
    assert whole.shape == (len(indices), 4)
    parts = [sample_words(key(1), epoch, part) for part in (indices[:cut], indices[cut:])]
    assert np.array_equal(np.concatenate(parts), whole)


def test_samples_epochs_and_seeds_do_not_share_words():
    rows = [sample_words(key(seed), epoch, np.arange(2000)) for seed in range(4) for epoch in range(4)]
    words = np.concatenate(rows).view(np.uint64)
    assert len(np.unique(words)) == words.size


def test_wrong_indices_are_refused():
    with pytest.raises(TypeError, match="indices must be integers, got float64"):
        sample_words(key(0), 0, [0.5])
    with pytest.raises(ValueError, match=r"one dimension, got shape \(1, 1\)"):
        sample_words(key(0), 0, [[1]])
    with pytest.raises(TypeError, match="integer"):
        sample_words(key(0), 0.5, [1])


def test_seeded_globals_are_functions_of_the_words():
    first, second = sample_words(key(0), 0, [0, 1])
    expected = globals_after(first)
    np.random.randn(), random.gauss(0, 1), torch.rand(5)
    assert globals_after(first) == expected
    assert globals_after(first.tolist()) == expected
    assert globals_after(second) != expected


@pytest.mark.parametrize("position", range(4))
def test_every_word_reaches_every_generator(position):
    words = [1, 2, 3, 4]
    changed = [word ^ (1 << 31) if i == position else word for i, word in enumerate(words)]
    assert all(a != b for a, b in zip(globals_after(words), globals_after(changed), strict=True))
    assert not torch.equal(*(torch.rand(4, generator=sample_torch_generator(each)) for each in (words, changed)))
    assert sample_generator(words).random() != sample_generator(changed).random()


def test_seeding_in_preserved_globals_leaves_no_trace():
    before = ambient_fingerprint()
    globals_after([1, 2, 3, 4])
    assert drawn(before, ambient_fingerprint()) == []


def test_the_generators_of_a_sample_need_no_globals():
    before = ambient_fingerprint()
    words = sample_words(key(2), 0, [5])[0]
    drawn_torch = torch.rand(3, generator=sample_torch_generator(words)).tolist()
    drawn_numpy = sample_generator(words).random(3).tolist()
    assert drawn(before, ambient_fingerprint()) == []
    assert drawn_torch == globals_after(words)[0]
    as_key = torch.from_numpy(words.view(np.int64).copy())
    assert drawn_numpy == numpy_generator(as_key).random(3).tolist()


@given(st.integers(0, 20), st.booleans())
@settings(max_examples=20)
def test_a_reused_generator_is_like_a_new_one(used, half):
    words = sample_words(key(0), 0, np.arange(2))
    old = sample_generator(words[0])
    old.random(used)
    if half:
        old.integers(0, 2**31, dtype=np.uint32)  # leaves half of a 64-bit word for later
    assert sample_generator(words[1], reuse=old) is old
    new = sample_generator(words[1])
    assert old.integers(0, 2**31, 9, dtype=np.uint32).tolist() == new.integers(0, 2**31, 9, dtype=np.uint32).tolist()
    assert old.standard_normal(9).tolist() == new.standard_normal(9).tolist()


def test_only_own_generators_can_be_reused():
    with pytest.raises(TypeError, match="PCG64"):
        sample_generator([1, 2, 3, 4], reuse=np.random.default_rng(0))
