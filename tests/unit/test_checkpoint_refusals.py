"""What cannot be saved exactly, or does not fit, is refused by path, with the remedy."""

from __future__ import annotations

import collections
import enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from helios_fn.checkpoint import Store, check_saveable
from helios_fn.errors import CheckpointError, ResumeRefused


class Color(enum.IntEnum):
    RED = 1


class Strange(torch.Tensor):
    pass


class Position(NamedTuple):
    shard: int


class Place(NamedTuple):
    shard: int


def freed() -> torch.Tensor:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


UNSAVEABLE = {
    "parameter": (lambda: torch.nn.Parameter(torch.ones(2)), "detach"),
    "requires grad": (lambda: torch.ones(2, requires_grad=True), "detach"),
    "result of autograd": (lambda: torch.ones(2, requires_grad=True) * 2, "detach"),
    "subclass": (lambda: torch.ones(2).as_subclass(Strange), "plain tensor"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "sparse csr": (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
    "quantised": (quantized, "int_repr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "pad"),
    "meta": (lambda: torch.ones(2, device="meta"), "no values"),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj"),
    "negative": (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "resolve_neg"),
    "freed": (freed, "clone"),
    "bits": (lambda: torch.ones(2, dtype=torch.uint8).view(torch.bits8), "another dtype"),
    "numpy array": (lambda: np.ones(2), "torch.as_tensor"),
    "numpy scalar": (lambda: np.float64(1.0), "item"),
    "int subclass": (lambda: Color.RED, "int"),
    "bytes": (lambda: b"x", "outside of the state"),
    "object": (object, "outside of the state"),
    "function": (lambda: print, "outside of the state"),
    "counter": (lambda: collections.Counter("ab"), "outside of the state"),
    "bad text": (lambda: "\ud800", "surrogates"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", UNSAVEABLE)
def test_a_leaf_that_cannot_be_saved_exactly_is_refused_by_path(case: str) -> None:
    """The message has the leaf's path and what to do."""
    make, remedy = UNSAVEABLE[case]
    with pytest.raises(TypeError, match=rf"\['net'\]\[1\]: .*{remedy}"):
        check_saveable({"net": [1.0, make()]})


def test_a_tensor_inside_a_transform_is_refused() -> None:
    """What `torch.func` wraps is not a value yet."""

    def inside(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(TypeError, match=r"torch\.func transform"):
            check_saveable({"x": x})
        return x

    torch.func.vmap(inside)(torch.ones(2, 3))


def test_all_offending_leaves_are_listed() -> None:
    """One run of the check finds every fault."""
    with pytest.raises(TypeError) as info:
        check_saveable({"a": object(), "b": {"c": torch.ones(1, requires_grad=True)}, "d": torch.ones(1)})
    assert "['a']" in str(info.value)
    assert "['b']['c']" in str(info.value)
    assert "['d']" not in str(info.value)


@pytest.mark.parametrize("key", [object(), "\udc00", (1, object()), print])
def test_dict_keys_must_be_spelled_the_same_in_every_process(key: Any) -> None:
    """A key whose text holds an address would never be found again."""
    with pytest.raises(TypeError, match="dict key"):
        check_saveable({"x": {key: 1}})


def test_containers_below_free_paths_must_be_plain() -> None:
    """A position that nobody could rebuild is refused when it is saved, not when it is needed."""
    check_saveable({"position": {"shard": [1, (2, None)]}}, free=("['position']",))
    with pytest.raises(TypeError, match="Position of 1 cannot be made without a template"):
        check_saveable({"position": [Position(1)]}, free=("['position']",))


def test_too_deep_a_tree_is_refused() -> None:
    """Instead of a recursion error at load."""
    state: Any = 1
    for _ in range(150):
        state = [state]
    with pytest.raises(TypeError, match="deeper than 100"):
        check_saveable(state)


def test_nothing_is_written_when_a_leaf_is_refused(tmp_path: Path) -> None:
    """The check comes before the first effect."""
    store = Store(tmp_path, "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TypeError, match="detach"):
        store.save({"w": torch.ones(1, requires_grad=True)}, epoch=0, iteration=0, micro_step=0, record={})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("record", "error"), [({"x": object()}, TypeError), ({"x": 10**2000}, ValueError), ({"x": b""}, TypeError)]
)
def test_a_record_that_is_not_json_is_refused(tmp_path: Path, record: Any, error: type[Exception]) -> None:
    """What would not be read again is not written."""
    store = Store(tmp_path, "run")
    with pytest.raises(error, match="record cannot be stored"):
        store.save({"w": 1}, epoch=0, iteration=0, micro_step=0, record=record)
    assert store.newest() is None


SAVED = {"w": torch.zeros(2, 3), "n": 1, "rest": [1.0, None, Position(4)], "o": collections.OrderedDict(a=1, b=2)}

MISFITS = {
    "shape": ({**SAVED, "w": torch.zeros(3, 2)}, r"\['w'\] +float32\[2, 3\] +float32\[3, 2\]"),
    "dtype": ({**SAVED, "w": torch.zeros(2, 3).double()}, r"\['w'\] +float32\[2, 3\] +float64\[2, 3\]"),
    "scalar type": ({**SAVED, "n": 1.0}, r"\['n'\] +int +float"),
    "bool is no int": ({**SAVED, "n": True}, r"\['n'\] +int +bool"),
    "scalar for tensor": ({**SAVED, "w": 1.0}, r"\['w'\] +float32\[2, 3\] +float"),
    "container for leaf": ({**SAVED, "n": [1]}, r"\['n'\] +int +list of 1"),
    "other container": ({**SAVED, "rest": (1.0, None, Position(4))}, r"\['rest'\] +list of 3 +tuple of 3"),
    "longer list": ({**SAVED, "rest": [1.0, None, Position(4), 2]}, r"\['rest'\]\[3\] +- +int"),
    "something for None": ({**SAVED, "rest": [1.0, 2.0, Position(4)]}, r"\['rest'\]\[1\] +None +float"),
    "other class": (
        {**SAVED, "rest": [1.0, None, Place(4)]},
        "Position of 1 +Place",
    ),
    "missing key": ({key: value for key, value in SAVED.items() if key != "n"}, r"\['n'\] +int +-"),
    "extra key": ({**SAVED, "m": 1}, r"\['m'\] +- +int"),
    "order of an OrderedDict": ({**SAVED, "o": collections.OrderedDict(b=2, a=1)}, r"order \['a'\], \['b'\]"),
    "an object": ({**SAVED, "n": object()}, r"\['n'\] +int +object"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_checkpoint_that_does_not_fit_is_refused_with_a_table(tmp_path: Path, case: str) -> None:
    """Path, what was saved, what was expected."""
    like, expected = MISFITS[case]
    store = Store(tmp_path, "run")
    checkpoint = store.at(store.save(SAVED, epoch=0, iteration=0, micro_step=0, record={}))
    with pytest.raises(ResumeRefused, match=expected):
        store.load(checkpoint, like)


def test_a_long_table_is_cut(tmp_path: Path) -> None:
    """Twenty rows, and how many more there are."""
    store = Store(tmp_path, "run")
    checkpoint = store.at(store.save({f"{i}": i for i in range(30)}, epoch=0, iteration=0, micro_step=0, record={}))
    with pytest.raises(ResumeRefused, match="30 differences") as info:
        store.load(checkpoint, {f"{i}": 0.0 for i in range(30)})
    assert "and 10 more" in str(info.value)
    assert len(str(info.value).splitlines()) == 23


def test_a_free_path_that_holds_classes_cannot_be_loaded(tmp_path: Path) -> None:
    """No class is ever made from a name in a file."""
    store = Store(tmp_path, "run")
    checkpoint = store.at(store.save({"x": Position(1)}, epoch=0, iteration=0, micro_step=0, record={}))
    with pytest.raises(CheckpointError, match="Position of 1 cannot be made without a template"):
        store.load(checkpoint, {"x": None}, free=("['x']",))
