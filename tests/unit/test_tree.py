"""The pytree vocabulary."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn import tree


@tree.register
@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


class Point(NamedTuple):
    x: Any
    y: Any = None


scalars = st.integers() | st.floats() | st.booleans() | st.text(max_size=3)
tensors = st.lists(st.floats(width=32), max_size=4).map(lambda values: torch.tensor(values, dtype=torch.float32))
trees = st.recursive(
    scalars | tensors | st.none(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=3), children, max_size=3)
        | st.tuples(children, children)
        | st.builds(Pair, children, children)
        | st.builds(Point, children, children)
    ),
    max_leaves=8,
)


def test_paths_read_like_python():
    """A path is what one would type after the name of the tree."""
    found = tree.paths(Pair({"w.0": 1, "b": [2, 3]}, Point(4)))
    assert found == ["left['b'][0]", "left['b'][1]", "left['w.0']", "right.x"]


@given(trees)
def test_flatten_and_unflatten_are_inverse(value):
    """Taking a tree apart and putting it together gives an equal tree."""
    leaves, treespec = tree.flatten(value)
    assert tree.equal(tree.unflatten(treespec, leaves), value)


@given(trees)
def test_a_copy_is_equal_and_has_no_difference(value):
    """Equality is by value, NaN included, and agrees with diff and digest."""
    copy = tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)
    assert tree.equal(copy, value)
    assert tree.diff(copy, value) == []
    assert tree.digest(copy) == tree.digest(value)


@given(trees, trees)
def test_equal_diff_and_digest_agree(left, right):
    """Two trees are equal exactly when nothing differs, and then they have one digest."""
    same = tree.equal(left, right)
    assert same == (tree.diff(left, right) == [])
    if same:
        assert tree.digest(left) == tree.digest(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (0.0, -0.0), (1, True), (1, 1.0), ("1", 1), (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, 1)), (torch.tensor(0.0), torch.tensor(-0.0)), ([1], (1,)),
        ({"a": 1}, {"b": 1}), (torch.tensor(1.0), 1.0), ([], ()), (Pair(1, 2), (1, 2)),
    ],
)  # fmt: skip
def test_what_python_confuses_differs(left, right):
    """Types, dtypes, shapes, containers and signs of zero are part of a value."""
    assert not tree.equal(left, right)
    assert tree.diff(left, right)


def test_equality_is_by_bits():
    """NaNs are equal when their bits are, and a difference in the last place is found and located."""
    assert tree.equal(torch.tensor([math.nan]), torch.tensor([math.nan]))
    left = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    right = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    right["w"][1, 0] = torch.nextafter(torch.tensor(3.0), torch.tensor(9.0))
    (found,) = tree.diff(left, right)
    assert found.path == "['w']"
    assert "1 of 4 elements, first at [1, 0]" in found.kind


def test_strides_are_placement_and_not_value():
    """A transposed copy with the same elements is the same value."""
    value = torch.arange(6).reshape(2, 3)
    assert tree.digest(value) == tree.digest(value.t().contiguous().t())
    assert tree.equal(value, value.t().contiguous().t())


@given(trees, trees)
def test_the_flattener_gives_what_flatten_gives(first, second):
    """A cached structure is never used for a tree of another structure."""
    flattener = tree.Flattener()
    for value in (first, second, first):
        leaves, treespec = flattener(value)
        expected, structure = tree.flatten(value)
        assert treespec == structure
        assert len(leaves) == len(expected)
        assert all(a is b for a, b in zip(leaves, expected, strict=True))


def test_only_frozen_dataclasses_can_be_nodes():
    """A node that could change in place would not be a value."""

    @dataclasses.dataclass
    class Open:
        x: int

    with pytest.raises(TypeError, match="frozen=True"):
        tree.register(Open)
    with pytest.raises(TypeError, match="not a dataclass"):
        tree.register(int)
