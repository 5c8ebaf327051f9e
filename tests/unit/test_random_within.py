"""`within` is `scope` around a call: the same draws and the same state of the world after it, whatever is called."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.random import ambient_fingerprint, drawn, within

DRAWS = {
    "nothing": lambda: 0.0,
    "torch": lambda: float(torch.rand(())),
    "python": lambda: python_random.random(),
    "python, second of a pair": lambda: python_random.gauss(0.0, 1.0),
    "numpy": lambda: float(np.random.rand()),
    "numpy, second of a pair": lambda: float(np.random.standard_normal()),
    "numpy, exactly one twist": lambda: float(np.random.rand(312).sum()),
    "the scope's own": lambda: float(hf.random.numpy().random()),
}


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from(sorted(DRAWS)), max_size=3), min_size=1, max_size=6), st.booleans())
def test_within_is_scope_around_the_call(calls, warm):
    """For any sequence of calls of one function, which draws now from this and now from that generator."""
    if warm:
        np.random.standard_normal()  # leaves the second normal of a pair waiting
        python_random.gauss(0.0, 1.0)

    def function(names):
        return [DRAWS[name]() for name in names]

    for number, names in enumerate(calls):
        key = hf.random.fold_in(hf.random.key(3), number)
        before = ambient_fingerprint()
        with hf.random.scope(key):
            expected = function(names)
        assert within(key, function, names) == expected
        assert drawn(before, ambient_fingerprint()) == []


def test_a_function_that_draws_in_every_call_is_called_once_each_time():
    """Nobody sees a draw twice who draws from the start; and a function that draws nothing is never called twice."""
    seen = []

    def function(draws):
        seen.append(float(torch.rand(())) if draws else None)

    def quiet(draws):
        seen.append(None)

    for number in range(3):
        within(hf.random.key(number), function, True)
        within(hf.random.key(number), quiet, False)
    assert len(seen) == 6


@pytest.mark.parametrize("draws", [False, True])
def test_an_error_passes_and_leaves_the_generators_alone(draws):
    def function(fails):
        if draws:
            torch.rand(())
        if fails:
            raise KeyError("mine")

    within(hf.random.key(0), function, False)
    before = ambient_fingerprint()
    with pytest.raises(KeyError, match="mine"):
        within(hf.random.key(0), function, True)
    assert drawn(before, ambient_fingerprint()) == []
