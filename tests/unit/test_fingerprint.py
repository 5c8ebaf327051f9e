"""Short digests: equal for equal bits wherever they lie, different for any flipped bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.fingerprint import SMALL, fingerprint

from ..strategies import examples

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float64]


def bits(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor of ``size`` elements."""
    numbers = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype)


@settings(max_examples=examples(40))
@given(
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 40) | st.integers(SMALL - 9, SMALL + 9) | st.integers(6 * SMALL, 6 * SMALL + 9),
    data=st.data(),
)
def test_every_flipped_bit_is_noticed(dtype, size, data):
    """In small tensors, in large ones, and in the last bytes that fill no word."""
    tensor = bits(size, dtype)
    raw = tensor.clone().view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1) | st.just(len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = raw if dtype == torch.uint8 else raw.view(dtype)
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor) != fingerprint(other)


@pytest.mark.parametrize("shape", [(3, 5), (300, 500)])
def test_layout_does_not_matter(shape):
    """A transposed, strided, offset or expanded tensor has the digest of its contiguous copy."""
    base = bits(2 * shape[0] * shape[1] + 1, torch.float32)
    for view in (
        base[1 : 1 + shape[0] * shape[1]].view(shape),
        base[:-1].view(shape[0], -1)[:, ::2],
        base[: shape[0] * shape[1]].view(shape[::-1]).T,
        base[:1].expand(shape),
    ):
        assert view.shape == shape
        assert fingerprint(view) == fingerprint(view.clone(memory_format=torch.contiguous_format))


def test_words_that_change_places_are_noticed():
    """Also by the distance of one list of columns, and across the blocks that are summed apart."""
    tensor = torch.arange(5_000_000, dtype=torch.int64)
    whole = fingerprint(tensor)
    for distance in (1, 2048, 2049, 2048 * 2048):
        other = tensor.clone()
        other[[7, 7 + distance]] = other[[7 + distance, 7]]
        assert fingerprint(other) != whole


def test_paths_kinds_and_shapes_count():
    """Digests are by path; equal bytes of another dtype or shape, and equal numbers of another type, differ."""
    zeros = torch.zeros(4)
    found = fingerprint({"a": [zeros, zeros.view(2, 2), zeros.view(torch.int32)], "b": 1, "c": 1.0, "d": True})
    assert list(found) == ["['a'][0]", "['a'][1]", "['a'][2]", "['b']", "['c']", "['d']"]
    assert len({*found.values()}) == 6
    assert {len(digest) for digest in found.values()} == {16}


def test_any_leaf_of_a_batch_has_a_digest():
    """Arrays by their values, texts too; of other objects, and of tensors without dense memory, the type counts."""
    one = fingerprint([np.arange(3), "text", object(), torch.eye(2).to_sparse(), torch.empty(2, device="meta"), None])
    other = fingerprint([np.arange(3) + 1, "test", object(), torch.zeros(2, 2).to_sparse(), torch.empty(2), None])
    assert [one[path] == other[path] for path in one] == [False, False, True, True, False]
