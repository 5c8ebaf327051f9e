"""`all_finite` is exact: any NaN or infinity anywhere is seen, and large numbers are not taken for infinite ones."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn.finiteness import all_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.int64, torch.bool]
SIZES = [0, 1, 5, 4096, 4097]


@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.sampled_from(DTYPES)), max_size=5),
    st.sampled_from([1.0, 1e4, 3e38]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.data(),
)
def test_it_is_exact(kinds, scale, bad, data):
    """For tensors of any sizes and dtypes: true as they are, false with one element replaced."""
    leaves = [torch.full((n,), min(scale, limit(dtype))).to(dtype) for n, dtype in kinds]
    assert bool(all_finite(leaves)) is True
    places = [i for i, leaf in enumerate(leaves) if leaf.numel() and (leaf.is_floating_point() or leaf.is_complex())]
    if places:
        leaf = leaves[data.draw(st.sampled_from(places))]
        leaf[data.draw(st.integers(0, leaf.numel() - 1))] = bad
        assert bool(all_finite(leaves)) is False
        # Under a transform the answer is a tensor.
        assert not torch.func.vmap(lambda each: all_finite([each]))(leaf.reshape(1, -1)).item()


def limit(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max) if dtype.is_floating_point else 1.0
