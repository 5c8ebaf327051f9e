"""The image of a generator is its whole state, whether it is read from memory or got in the official way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn.random import imaged
from helios_fn.random.generators import set_torch_state

DRAWS = {
    "uniform": lambda generator: torch.rand(1, generator=generator),
    "normal, one of a pair": lambda generator: torch.randn(1, generator=generator),
    "normals": lambda generator: torch.randn(16, generator=generator),
    "exactly one twist": lambda generator: torch.rand(624, generator=generator),
    "integers": lambda generator: torch.randint(2**40, (3,), generator=generator),
    "order": lambda generator: torch.randperm(5, generator=generator),
    "new seed": lambda generator: generator.manual_seed(2**62 + 7),
    "nothing": lambda generator: None,
}


@pytest.fixture(params=["memory", "official"])
def way(request, monkeypatch):
    if request.param == "official":
        monkeypatch.setattr(imaged, "_offset", lambda: None)
    return request.param


@given(seed=st.integers(0, 2**64 - 1), names=st.lists(st.sampled_from(sorted(DRAWS)), max_size=4), then=st.data())
def test_images_tell_states_apart_and_bring_them_back(way, seed, names, then):
    """For any history: the image changes when the official state does, and another generator goes on from it."""
    generator, other = torch.Generator().manual_seed(seed), torch.Generator()
    for name in names:
        DRAWS[name](generator)
    before, official = imaged.image(generator), generator.get_state()
    name = then.draw(st.sampled_from(sorted(DRAWS)))
    DRAWS[name](generator)
    if name == "nothing" or not torch.equal(generator.get_state(), official):
        assert (imaged.image(generator) == before) == (name == "nothing")
    imaged.put_back(other, before)
    assert torch.equal(other.get_state(), official)


@given(words=st.binary(min_size=8 * 313, max_size=8 * 313), name=st.sampled_from(sorted(DRAWS)))
def test_seeding_is_the_official_way_in_bytes(way, words, name):
    """Whatever was drawn before, also where a normal waits."""
    generator, expected = torch.Generator(), torch.Generator()
    DRAWS[name](generator)
    imaged.seed(generator, words)
    set_torch_state(expected, np.frombuffer(words, np.uint64))
    assert torch.equal(generator.get_state(), expected.get_state())


def test_the_layout_of_this_version_is_known():
    """Else every small step would take a twentieth longer, and nobody would be told."""
    assert imaged._offset() is not None


def test_another_layout_is_found_out(monkeypatch):
    """If memory did not hold the whole state, the official way would be taken."""
    monkeypatch.setattr(imaged, "_Image", imaged.ctypes.c_char * 2000)
    assert imaged._offset.__wrapped__() is None
    monkeypatch.setattr(imaged, "_SEARCHED", 16)
    assert imaged._offset.__wrapped__() is None
