"""`Seeded` calls a function as in a `torch_scope`, at less cost where it draws nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.random import Seeded, ambient_fingerprint, drawn, torch_scope

BATCHES = {
    "draws": [torch.ones(3)],
    "draws nothing": [torch.ones(2)],
    "draws nothing either": [torch.ones(2, dtype=torch.float64)],
    "holds a number": [torch.ones(2), 4],
}


def step(leaf, *rest):
    """What it draws depends on the kind of its batch alone, as in a compiled function."""
    return leaf.sum() + (torch.rand(()) if leaf.numel() == 3 else 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(sorted(BATCHES)), min_size=1, max_size=12), st.booleans())
def test_seeded_is_a_scope_of_torchs_generators_around_the_call(kinds, consumes):
    seeded = Seeded(step)
    for number, kind in enumerate(kinds):
        key, batch = hf.random.fold_in(hf.random.key(3), number), BATCHES[kind]
        before = ambient_fingerprint()
        with torch_scope(key):
            expected = step(*batch)
        assert torch.equal(seeded(key, batch, *batch, consumes=consumes), expected)
        assert drawn(before, ambient_fingerprint()) == []


def test_what_draws_nothing_is_seeded_once_for_each_kind_of_batch():
    seen = []
    seeded = Seeded(lambda leaf: seen.append(torch.default_generator.get_state()))
    ambient = torch.default_generator.get_state()
    for number, size in enumerate((2, 2, 5, 2, 5)):
        seeded(hf.random.key(number), [torch.ones(size)], torch.ones(size), consumes=True)
    assert [torch.equal(state, ambient) for state in seen] == [False, True, False, True, True]


@pytest.mark.parametrize("consumes", [False, True])
def test_a_function_that_starts_to_draw_is_called_again_or_refused(consumes):
    """A draw that no key decides never gets into a result."""
    draws = []
    seeded = Seeded(lambda leaf: torch.rand(()) if draws else torch.zeros(()))
    key, batch = hf.random.key(5), [torch.ones(2)]
    seeded(key, batch, *batch, consumes=consumes)
    draws.append(True)
    before = ambient_fingerprint()
    if consumes:
        with pytest.raises(RuntimeError, match="drew now, and its state is given away"):
            seeded(key, batch, *batch, consumes=True)
    else:
        with torch_scope(key):
            expected = torch.rand(())
        assert torch.equal(seeded(key, batch, *batch, consumes=False), expected)
    assert drawn(before, ambient_fingerprint()) == []
