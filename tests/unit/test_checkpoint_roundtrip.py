"""Law 4: what is loaded equals what was saved, in bits, dtypes, strides, sharing and structure."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Store
from helios_fn.checkpoint.leaves import DTYPES
from helios_fn.checkpoint.snapshot import Snapshots, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Volatile(FileSystem):
    """A file system that forgets to sync: quicker, and no different for a process that lives on."""

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Pair(NamedTuple):
    first: Any
    second: Any


@tree.register
@dataclasses.dataclass(frozen=True)
class Box:
    a: Any
    b: Any


def save(folder: Path, state: Any, *, free: Any = ()) -> tuple[Store, Path]:
    store = Store(folder, "run", files=Volatile())
    return store, store.save(state, epoch=0, iteration=0, micro_step=0, record={}, free=free)


def round_trip(folder: Path, state: Any, like: Any = None, *, free: Any = ()) -> Any:
    store, path = save(folder, state, free=free)
    return store.load(store.at(path), state if like is None else like, free=free)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of the elements, in row-major order."""
    return bytes(tree.tensor_bytes(tensor))


def relations(state: Any) -> list[tuple[int, int, int]]:
    """For each pair of leaves in one storage: which, and how many bytes lie between their beginnings."""
    tensors = [leaf for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor) and leaf.numel()]
    found = []
    for i, one in enumerate(tensors):
        for j, other in enumerate(tensors[:i]):
            if one.untyped_storage()._cdata == other.untyped_storage()._cdata:
                found.append((i, j, one.data_ptr() - other.data_ptr()))
    return found


def check_equal(loaded: Any, state: Any) -> None:
    assert tree.diff(loaded, state) == []
    assert repr(tree.structure(loaded)) == repr(tree.structure(state))
    for one, other in zip(tree.leaves(loaded), tree.leaves(state), strict=True):
        if isinstance(one, torch.Tensor):
            assert one.stride() == other.stride()
            assert type(one) is torch.Tensor
    assert relations(loaded) == relations(state)


@dataclasses.dataclass(frozen=True)
class View:
    """A leaf still without memory: a part of one of the state's storages."""

    memory: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, memories: list[torch.Tensor]) -> torch.Tensor:
        """The tensor: strided, overlapping, expanded, or of no elements where the memory is too short."""
        memory = memories[self.memory % len(memories)]
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        room = len(memory) // self.dtype.itemsize - last
        tensor = torch.empty(0, dtype=self.dtype)
        if 0 in self.shape or room <= 0:
            return tensor.as_strided((0, *self.shape), (1, *self.strides))
        return tensor.set_(memory.untyped_storage(), self.offset % room, self.shape, self.strides)


SIDES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3)
VIEWS = st.builds(
    lambda memory, dtype, sides, offset: (
        View(memory, dtype, *(tuple(part) for part in zip(*sides, strict=True)), offset)
        if sides
        else View(memory, dtype, (), (), offset)
    ),
    st.integers(0, 2),
    st.sampled_from(list(DTYPES.values())),
    SIDES,
    st.integers(0, 95),
)


def bits_to_float(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


FLOATS = st.floats() | st.integers(0, 2**64 - 1).map(bits_to_float)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | FLOATS
    | st.builds(complex, FLOATS, FLOATS)
    | st.text(max_size=5)
)
KEYS = st.text(max_size=4) | st.integers(-5, 5) | st.tuples(st.integers(0, 3), st.text(max_size=1))


MEMORIES = st.lists(st.binary(min_size=16, max_size=96).map(bytearray), min_size=1, max_size=3)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: collections.deque(items, maxlen=4))
        | st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=3).map(lambda items: collections.defaultdict(list, items))
        | st.builds(Pair, inner, inner)
        | st.builds(Box, inner, inner)
        | st.none()
    )


def _with_memory(outline: Any, contents: list[bytearray]) -> Any:
    memories = [torch.frombuffer(content, dtype=torch.uint8).clone() for content in contents]
    return tree.map(lambda leaf: leaf.of(memories) if isinstance(leaf, View) else leaf, outline)


STATES = st.builds(_with_memory, st.recursive(SCALARS | VIEWS, _containers, max_leaves=12), MEMORIES)
"""Any tree that can be saved."""


@settings(max_examples=250, deadline=None)
@given(state=STATES)
def test_a_state_comes_back_exactly(tmp_path_factory: Any, state: Any) -> None:
    """Bits (NaNs, signed zeros, huge integers), dtypes, strides, sharing, structure and dict order are kept."""
    loaded = round_trip(tmp_path_factory.mktemp("root"), state)
    check_equal(loaded, state)


@settings(max_examples=60, deadline=None)
@given(state=STATES)
def test_saving_what_was_loaded_writes_the_same_files(tmp_path_factory: Any, state: Any) -> None:
    """So a state and its restored self count as the same checkpoint."""
    here, there = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("root")
    store, path = save(here, state)
    _, again = save(there, store.load(store.at(path), state))
    for name in ("state.json", "tensors.safetensors"):
        assert (path / name).read_bytes() == (again / name).read_bytes()


_X, _Y = torch.arange(6.0), torch.arange(6.0)
LOOK_ALIKES = [
    {"a": _X, "b": _Y}, {"b": _X, "a": _Y}, {"a": _X, "b": _X}, collections.OrderedDict(a=_X, b=_Y), Pair(_X, _Y),
    Box(_X, _Y), (_X, _Y), [_X, _Y], [_X, [_Y]], [_X, _Y, None], [_X, _Y, ()], {1: _X, 2: _Y}, {True: _X, 2: _Y},
    {1.0: _X, 2: _Y}, (_X.view(2, 3), _Y), (_X[1:], _Y), (_X.long(), _Y), (_X, 1), (_X, 2), (_X, 1.0), (_X, True),
]  # fmt: skip


def test_what_is_remembered_of_a_tree_is_not_taken_for_one_that_looks_alike() -> None:
    """One after the other through one `Snapshots`, each pair of trees gives the files that it gives alone."""
    for first, second in itertools.permutations(LOOK_ALIKES, 2):
        remembering = Snapshots()
        remembering.take(first)
        found, alone = remembering.take(second), snapshot(second)
        assert found.state == alone.state
        assert b"".join(found.tensor_chunks()) == b"".join(alone.tensor_chunks())


@settings(max_examples=100, deadline=None)
@given(state=STATES)
def test_paths_are_spelled_as_everywhere_else(state: Any) -> None:
    """Each leaf of a description has the path that `tree.paths` gives."""
    from helios_fn.checkpoint.structure import Container, expected_leaf, join, outline

    def paths(node: Any, path: str) -> list[str]:
        if not isinstance(node, Container):
            return [path]
        return [
            found for part, x in zip(node.parts, node.children, strict=True) for found in paths(x, join(path, part))
        ]

    assert sorted(paths(outline(state, expected_leaf), "")) == sorted(tree.paths(state))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dense_dtype_keeps_every_bit(tmp_path: Path, name: str) -> None:
    """Each of the 256 bytes survives in each position of an element."""
    data = torch.arange(256, dtype=torch.uint8).repeat(DTYPES[name].itemsize)
    tensor = data.view(DTYPES[name]) if name != "bool" else data % 2 == 0
    loaded = round_trip(tmp_path, {"x": tensor})
    assert loaded["x"].dtype == DTYPES[name]
    assert raw(loaded["x"]) == raw(tensor)


def test_loaded_tensors_are_fresh_aligned_and_independent(tmp_path: Path) -> None:
    """Neither the saved tensors, nor the template's, nor the file, nor other leaves share their memory."""
    state = {"a": torch.ones(3), "b": torch.ones(5), "c": torch.ones(7, dtype=torch.uint8)}
    store, path = save(tmp_path, state)
    one, two = (store.load(store.at(path), state) for _ in range(2))
    leaves = [*tree.leaves(state), *tree.leaves(one), *tree.leaves(two)]
    assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == len(leaves)
    assert all(leaf.data_ptr() % 64 == 0 for leaf in tree.leaves(one))
    before = (path / "tensors.safetensors").read_bytes()
    one["a"].zero_()
    assert two["a"].tolist() == state["a"].tolist() == [1.0, 1.0, 1.0]
    assert (path / "tensors.safetensors").read_bytes() == before


def test_a_view_of_a_huge_storage_saves_only_what_it_shows(tmp_path: Path) -> None:
    """The file holds the bytes between the first and last element that some leaf looks at."""
    huge = torch.zeros(10_000_000)
    state = {"middle": huge[5_000_000:5_000_010], "near": huge[5_000_008:5_000_016]}
    _, path = save(tmp_path, state)
    assert (path / "tensors.safetensors").stat().st_size < 1000
    check_equal(round_trip(tmp_path / "again", state), state)


def test_bytes_that_no_leaf_shows_are_not_stored(tmp_path: Path) -> None:
    """Memory between the elements of a strided leaf reads as zero in the file: it is no part of the state."""
    memory = torch.full((40,), 0xEE, dtype=torch.uint8)
    memory[::4] = 7
    _, path = save(tmp_path, {"x": memory[::4], "y": memory[8:9].expand(5)})
    data = (path / "tensors.safetensors").read_bytes()
    assert data.count(7) >= 10
    assert 0xEE not in data


def test_views_of_one_memory_may_differ_in_dtype(tmp_path: Path) -> None:
    """The stored range begins where each of them has a whole element."""
    memory = torch.arange(32, dtype=torch.uint8)
    state = {"odd": memory[3:5], "words": memory.view(torch.int64)[1:3], "pair": memory.view(torch.int16)[2]}
    check_equal(round_trip(tmp_path, state), state)


def test_integers_have_no_limit(tmp_path: Path) -> None:
    """Python's limit on decimal digits does not apply."""
    values = [sign * value for value in (10**5000, 2**63, 2**63 - 1) for sign in (1, -1)]
    assert round_trip(tmp_path, values) == values


def test_a_write_through_one_shared_leaf_shows_in_the_other(tmp_path: Path) -> None:
    """Tied weights come back tied, in values and not only in numbers."""
    weight = torch.arange(6.0).reshape(2, 3)
    loaded = round_trip(tmp_path, {"encoder": weight, "decoder": weight.t(), "row": weight[1]})
    loaded["encoder"][1, 2] = 99.0
    assert loaded["decoder"][2, 1] == 99.0
    assert loaded["row"][2] == 99.0


def test_dicts_keep_their_order_of_insertion(tmp_path: Path) -> None:
    """A sum over a dict's values rounds in their order; a resumed run must use the saved one."""
    loaded = round_trip(tmp_path, {"b": 1.0, "a": 2.0, "c": 3.0}, like={"c": 0.0, "b": 0.0, "a": 0.0})
    assert list(loaded.items()) == [("b", 1.0), ("a", 2.0), ("c", 3.0)]


def test_other_readers_find_whole_leaves_under_their_paths(tmp_path: Path) -> None:
    """The tensor file is ordinary safetensors; a leaf with memory of its own has its name, dtype and shape."""
    state = {"w": torch.randn(3, 4), "h": torch.ones(5, dtype=torch.bfloat16), "n": torch.tensor(7)}
    _, path = save(tmp_path, {"params": state, "strided": torch.randn(4, 4)[:, 1]})
    found = load_file(path / "tensors.safetensors")
    for name, tensor in state.items():
        assert found[f"state['params']['{name}']"].dtype == tensor.dtype
        assert torch.equal(found[f"state['params']['{name}']"], tensor)


def test_free_paths_are_rebuilt_from_the_file_alone(tmp_path: Path) -> None:
    """What the template cannot know (metrics, a stream's position) comes back all the same."""
    state = Box(a=torch.ones(2), b={"loss": torch.tensor(1.5), "more": [None, (1, {"x": 2.0})], 3: "t"})
    loaded = round_trip(tmp_path, state, like=Box(a=torch.zeros(2), b=None), free=("b",))
    check_equal(loaded, state)


def test_containers_and_classes_come_from_the_template(tmp_path: Path) -> None:
    """A file that names a class gets the template's class of that name, whatever it is."""

    @tree.register
    @dataclasses.dataclass(frozen=True)
    class Pair:
        first: Any
        second: Any

    here = round_trip(tmp_path, Pair(1, 2.0), like=Pair(0, 0.0))
    assert type(here) is Pair


def test_a_template_on_the_meta_device_loads_to_the_cpu(tmp_path: Path) -> None:
    """Dtypes and shapes are enough of a template."""
    state = {"x": torch.arange(3)}
    loaded = round_trip(tmp_path, state, like={"x": torch.empty(3, dtype=torch.int64, device="meta")})
    check_equal(loaded, state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_tensors_come_back_on_the_template_s_device(tmp_path: Path) -> None:
    """A checkpoint has no devices: it is loaded to where the template's leaves are, still sharing memory."""
    memory = torch.arange(12.0, device="cuda").reshape(3, 4)
    state = {"x": memory, "column": memory[:, 1]}
    check_equal(round_trip(tmp_path / "a", state), state)
    moved = round_trip(tmp_path / "b", state, like=tree.map(torch.Tensor.cpu, state))
    assert all(leaf.device.type == "cpu" for leaf in tree.leaves(moved))
    assert relations(moved) == relations(state)


def test_the_default_device_and_grad_mode_do_not_matter(tmp_path: Path) -> None:
    """Saving and loading inside of somebody's contexts gives the same."""
    state = {"x": torch.randn(3), "y": torch.randn(4, 4)[:, 0]}
    with torch.device("meta"), torch.no_grad():
        loaded = round_trip(tmp_path, state)
    check_equal(loaded, state)
    assert not loaded["x"].requires_grad


def test_state_json_is_strict_json(tmp_path: Path) -> None:
    """Infinities and NaNs among the leaves do not depend on Python's dialect."""
    _, path = save(tmp_path, {"inf": math.inf, "nan": math.nan, "x": 0.1})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((path / "state.json").read_text(), parse_constant=refuse)
