"""A summary counts what a state holds, before there is memory for it, and shared memory once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import helios_fn as hf

TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
TREES = st.recursive(
    TENSORS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def state_of(optimizer):
    _, params, buffers = hf.functional(network)
    return hf.init_state(params, optimizer, buffers=buffers)


@given(tree=TREES)
def test_elements_and_bytes_are_those_of_the_tensors(tree):
    """For any tree: nothing counted twice, nothing left out."""
    tensors = [leaf for leaf in hf.tree.leaves(tree) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        with pytest.raises(ValueError, match="there is no tensor"):
            hf.summary(tree)
        return
    found = hf.summary(tree)
    assert [leaf.shape for leaf in found.leaves] == [tuple(leaf.shape) for leaf in tensors]
    assert found.elements == sum(leaf.numel() for leaf in tensors)
    # Hypothesis may put one tensor at two places.
    assert found.bytes == sum(leaf.nbytes for leaf in {id(leaf): leaf for leaf in tensors}.values())


def test_the_parts_of_a_state_are_found_by_name():
    """AdamW remembers two numbers for each parameter, and a count."""
    found = hf.summary(state_of(hf.optim.adamw(1e-3)))
    params = found.below("params")
    assert params.elements == 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2
    assert params.bytes == 4 * params.elements
    assert found.below("opt_state").elements >= 2 * params.elements
    assert found.below("params.0").elements == 16
    assert len(found.below("para")) == 0


def test_shared_memory_is_counted_once_and_said():
    """As for tied weights."""
    weight = torch.zeros(2, 3)
    found = hf.summary({"head": weight, "stem": weight})
    assert (found.bytes, found.elements) == (24, 12)
    assert "shared" in str(found)


def test_a_part_that_comes_before_the_whole_hides_nothing():
    """Of two leaves that begin at the same place, the longer one counts, in any order."""
    whole = torch.zeros(10)
    for names in ("ab", "ba"):
        parts = dict(zip(names, (whole[:5], whole), strict=True))
        assert hf.summary(parts).bytes == 40


def test_a_state_is_summed_up_before_there_is_memory_for_it():
    """A thousand billion parameters, on the meta device and as fake tensors, as what they will need."""
    shape = (1_000_000, 1_000_000)
    meta = hf.summary({"w": torch.empty(shape, device="meta")})
    with FakeTensorMode():
        fake = hf.summary({"w": torch.empty(shape), "v": torch.empty(shape)})
    assert meta.bytes == 4 * 10**12
    assert fake.bytes == 8 * 10**12
    assert "4 TB" in str(meta)


def test_the_table_reads_well():
    """One line for each tensor, the fields of the state at the end; less with a depth."""
    state = state_of(hf.optim.sgd(0.1))
    lines = str(hf.summary(state)).splitlines()
    assert lines[0].split() == ["name", "kind", "elements", "memory"]
    assert lines[2].split() == ["params.0.bias", "float32[4]", "4", "16", "B"]
    assert lines[-1].split()[0] == "all"
    assert any(line.split()[:2] == ["params", "6"] for line in lines)
    short = str(hf.summary(state, depth=2)).splitlines()
    assert any(line.split() == ["params.0", "2", "tensors", "16", "64", "B"] for line in short)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_a_depth_that_is_none_is_refused(depth):
    """With the value."""
    with pytest.raises(ValueError, match="depth must be an integer of at least 1"):
        hf.summary({"w": torch.zeros(1)}, depth=depth)
