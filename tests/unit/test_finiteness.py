"""`all_finite` is exact: any NaN or infinity anywhere is seen, and large numbers are not taken for infinite ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn.finiteness import all_finite, are_found_finite

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


@given(
    st.lists(st.tuples(st.sampled_from([1, 5, 4097]), st.sampled_from(DTYPES[:4])), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([None, math.nan, math.inf, -math.inf]),
    st.data(),
)
def test_the_quick_way_says_yes_only_rightly_and_changes_no_bit(kinds, seed, bad, data):
    """Subnormal numbers and negative zeros stay what they are; one bad element anywhere is seen."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(n, generator=generator, dtype=torch.float64) for n, _ in kinds]
    leaves = [
        (x * 10.0 ** (8 * x.sign())).to(dtype).clamp(-6e4, 6e4) for x, (_, dtype) in zip(drawn, kinds, strict=True)
    ]
    for leaf in leaves:
        leaf[::3] *= torch.finfo(leaf.dtype).tiny
        leaf[::7] = -0.0
    if bad is not None:
        leaf = leaves[data.draw(st.integers(0, len(leaves) - 1))]
        leaf[data.draw(st.integers(0, len(leaf) - 1))] = bad
    before = [leaf.clone() for leaf in leaves]
    assert are_found_finite(torch.tensor(1.0), leaves) is (bad is None)
    for old, new in zip(before, leaves, strict=True):
        assert torch.equal(old.isnan(), new.isnan())  # which one of all that are NaN is not asked for
        assert torch.equal(
            old.nan_to_num(0.0, math.inf, -math.inf).view(torch.uint8),
            new.nan_to_num(0.0, math.inf, -math.inf).view(torch.uint8),
        )


@pytest.mark.parametrize(
    "leaf",
    [
        torch.zeros(1).expand(5),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3).to_sparse(),
        torch.zeros(3).to(torch.float8_e4m3fn),
        torch.zeros(3, device="meta"),
        2.0,
    ],
    ids=["overlapping", "complex", "sparse", "8 bits", "no values", "a number"],
)
def test_the_quick_way_does_not_judge_other_tensors(leaf):
    """Then the way that can is taken, as the step does."""
    assert are_found_finite(torch.tensor(1.0), [leaf]) is False
    assert are_found_finite(leaf, []) is False


@pytest.mark.parametrize("loss", [math.nan, math.inf, 3e38, 0.0])
def test_the_quick_way_looks_at_the_loss(loss):
    assert are_found_finite(torch.tensor(loss), []) is math.isfinite(loss)


def limit(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max) if dtype.is_floating_point else 1.0
