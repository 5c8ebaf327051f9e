"""The generator is Philox4x32-10, in each of its three forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.random.philox import philox_int, philox_numpy, philox_torch

# The lines "philox4x32 10" of Random123's file kat_vectors: counter, key, block.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
word = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
counters = st.lists(st.tuples(word, word, word, word), min_size=1, max_size=20)
keys = st.tuples(word, word)


def by_torch(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    lanes = torch.tensor(counter.tolist(), dtype=torch.int64).T
    blocks = philox_torch(*lanes, *torch.tensor(key))
    return torch.stack(blocks, -1).numpy()


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_all_forms_give_the_published_answers(counter, key, block):
    lanes = np.array([counter], np.uint64)
    assert philox_int(*counter, *key) == block
    assert philox_numpy(*lanes.T, *key).tolist() == [list(block)]
    assert by_torch(lanes, key).tolist() == [list(block)]


@given(counters, keys)
@settings(max_examples=100)
def test_the_three_forms_are_one_function(counter, key):
    lanes = np.array(counter, np.uint64)
    expected = [list(philox_int(*each, *key)) for each in counter]
    assert philox_numpy(*lanes.T, *key).tolist() == expected
    assert by_torch(lanes, key).tolist() == expected


@given(st.lists(word, min_size=1, max_size=5), word, word, keys)
@settings(max_examples=50)
def test_the_numpy_form_takes_integers_for_constant_counters(low, c2, c3, key):
    expected = [list(philox_int(c0, 7, c2, c3, *key)) for c0 in low]
    lanes = np.array(low, np.uint64)
    assert philox_numpy(lanes, np.full_like(lanes, 7), c2, c3, *key).tolist() == expected


def test_no_blocks_are_no_blocks():
    none = np.zeros(0, np.uint64)
    assert philox_numpy(none, none, 0, 0, 1, 2).shape == (0, 4)
