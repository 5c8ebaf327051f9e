"""Numbers lent as tensors are the numbers that were asked for, in any order and whoever wrote to those before."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn.scalars import Constants, Counts


@given(
    st.sampled_from([torch.int64, torch.float32]),
    st.lists(st.tuples(st.integers(0, 600) | st.integers(0, 2**62), st.sampled_from(["", "written", "inference"]))),
)
def test_counts(dtype, asked):
    """Backwards, far ahead, within and outside of inference mode; rounded as a number by itself is."""
    counts = Counts(dtype)
    for number, what in asked:
        with torch.inference_mode(what == "inference"):
            made = counts.tensor(number)
            assert (made.dtype, made.shape) == (dtype, ())
            assert torch.equal(made, torch.scalar_tensor(number, dtype=dtype))
        if what == "written":
            made.add_(1)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, -0.0, 1.5, math.nan, 1]), st.booleans())))
def test_constants(asked):
    """A zero keeps its sign."""
    constants = Constants()
    for name, value, written in asked:
        made = constants.tensor(name, value)
        assert made.dtype == torch.float64
        assert made.item() == value or math.isnan(value)
        assert math.copysign(1.0, made.item()) == math.copysign(1.0, value) or math.isnan(value)
        if written:
            made.add_(1)
