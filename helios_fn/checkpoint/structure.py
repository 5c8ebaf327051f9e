"""The structure of a tree as data: written as JSON, compared with a template, rebuilt inside it.

A checkpoint never names a class to construct. Registered dataclasses, NamedTuples and other
containers are made by unflattening the template's own; only in the parts declared free are dicts,
lists, tuples and ``None`` made from the file alone.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import optree
import torch

from ..tree import NAMESPACE
from ..types import Json, Tree
from .leaves import (
    DTYPE_NAMES,
    SCALARS,
    Leaf,
    Scalar,
    ShardedSpec,
    TensorSpec,
    Unknown,
    count_from_json,
    dtype_from_json,
    is_text,
    scalar_from_json,
    scalar_to_json,
    sharded_from_json,
    sharded_to_json,
    sizes_from_json,
)

MAX_DEPTH = 100
"""The deepest tree that can be stored; its JSON nests twice as deep."""

_Kind = optree.PyTreeKind
_MAPPINGS = {_Kind.DICT: "dict", _Kind.ORDEREDDICT: "ordereddict", _Kind.DEFAULTDICT: "defaultdict"}
_SEQUENCES = {_Kind.NONE: "none", _Kind.TUPLE: "tuple", _Kind.LIST: "list", _Kind.DEQUE: "deque"}
_NAMED = {_Kind.CUSTOM: "node", _Kind.NAMEDTUPLE: "namedtuple", _Kind.STRUCTSEQUENCE: "structsequence"}
_KINDS = _MAPPINGS | _SEQUENCES | _NAMED


class Container(NamedTuple):
    """A node with children.

    ``keys`` are parallel to ``children``: the keys of a mapping in the order of insertion, the last
    parts of the paths (``.name``) in a node that has a ``name``, and nothing in a sequence.
    """

    kind: str
    name: str
    keys: tuple[Json, ...]
    children: tuple[Node, ...]

    @property
    def parts(self) -> list[str]:
        """What each child adds to the path."""
        if self.kind in _MAPPINGS.values():
            return [f"[{key_text(key)}]" for key in self.keys]
        if self.kind in _NAMED.values():
            return [str(key) for key in self.keys]
        return [f"[{number}]" for number in range(len(self.children))]

    def __str__(self) -> str:
        return "None" if self.kind == "none" else f"{self.name or self.kind} of {len(self.children)}"


Node: TypeAlias = Container | Leaf


class Mismatch(NamedTuple):
    """A path at which a saved tree does not fit its template."""

    path: str
    saved: str
    expected: str


class Opened(NamedTuple):
    """One container taken apart.

    ``children`` go by what they add to the path. ``close`` makes an equal container around other
    children; dicts take over their order.
    """

    kind: str
    name: str
    keys: tuple[Any, ...]
    children: dict[str, Any]
    close: Callable[[Mapping[str, Any]], Any]


def open_node(node: Any) -> Opened | None:
    """Take one container of a tree apart; ``None`` for a leaf."""
    if type(node) in SCALARS or isinstance(node, torch.Tensor):
        return None
    try:
        level = optree.tree_flatten_one_level(node, namespace=NAMESPACE)
    except ValueError:  # how optree says that it is a leaf
        return None
    kind = _KINDS[level.kind]
    parts = [level.path_entry_type(entry, level.type, level.kind).codify("") for entry in level.entries]

    def close(children: Mapping[str, Any]) -> Any:
        built = level.unflatten_func(level.metadata, [children[part] for part in parts])
        return _reorder(built, list(children)) if kind in ("dict", "defaultdict") else built

    if level.kind in _MAPPINGS:
        children = {f"[{key!r}]": node[key] for key in node}
        return Opened(kind, "", tuple(node), children, close)
    children = dict(zip(parts, level.children, strict=True))
    named = level.kind in _NAMED
    return Opened(kind, level.type.__name__ if named else "", tuple(parts) if named else (), children, close)


def join(path: str, part: str) -> str:
    """The path of a child, spelled as `helios_fn.tree.paths` does."""
    return (path + part).removeprefix(".")


def is_key(key: Any) -> bool:
    """Whether a dict key has a spelling that is the same in every process."""
    if type(key) is tuple:
        return all(is_key(part) for part in key)
    if type(key) is str:
        return is_text(key)
    return key is None or type(key) in (int, bool, float, bytes) or isinstance(key, enum.Enum)


def key_text(key: Json) -> str:
    """A stored dict key as it stands in a path."""
    return str(key["repr"]) if isinstance(key, dict) else repr(key)


def outline(tree: Tree, leaf: Callable[[str, Any], Leaf], path: str = "") -> Node:
    """Describe a tree, with ``leaf(path, value)`` describing each leaf."""
    opened = open_node(tree)
    if opened is None:
        return leaf(path, tree)
    keys = tuple(_key_to_json(key) for key in opened.keys)
    children = tuple(outline(child, leaf, join(path, part)) for part, child in opened.children.items())
    return Container(opened.kind, opened.name, keys, children)


def expected_leaf(_: str, leaf: Any) -> Leaf:
    """Describe a leaf of a template."""
    if isinstance(leaf, torch.Tensor):
        name = DTYPE_NAMES.get(leaf.dtype, str(leaf.dtype))
        return TensorSpec(name, tuple(leaf.shape), (), None, 0)
    return Scalar(type(leaf).__name__, leaf) if type(leaf) in SCALARS else Unknown(type(leaf).__name__)


def leaf_specs(node: Node) -> Iterator[Leaf]:
    """The leaves of a description."""
    if isinstance(node, Container):
        for child in node.children:
            yield from leaf_specs(child)
    else:
        yield node


def leaf_items(node: Node, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Pairs of path and leaf of a description, in the order in which it was made."""
    if isinstance(node, Container):
        for part, child in zip(node.parts, node.children, strict=True):
            yield from leaf_items(child, join(path, part))
    else:
        yield path, node


def compare(saved: Node, expected: Node, *, free: Collection[str] = (), path: str = "") -> Iterator[Mismatch]:
    """Where ``saved`` differs from ``expected`` in structure, types, dtypes or shapes, ``free`` paths excepted."""
    if path in free:
        return
    if not isinstance(saved, Container) or not isinstance(expected, Container):
        if not _alike(saved, expected):
            yield Mismatch(path, str(saved), str(expected))
        return
    if (saved.kind, saved.name) != (expected.kind, expected.name):
        yield Mismatch(path, str(saved), str(expected))
        return
    here, there = (dict(zip(node.parts, node.children, strict=True)) for node in (saved, expected))
    if saved.kind == "ordereddict" and here.keys() == there.keys() and list(here) != list(there):
        yield Mismatch(path, f"order {', '.join(here)}", f"order {', '.join(there)}")
    for part in here | there:
        child = join(path, part)
        if part in here and part in there:
            yield from compare(here[part], there[part], free=free, path=child)
        else:
            yield Mismatch(child, str(here.get(part, "-")), str(there.get(part, "-")))


def rebuild(
    saved: Node, like: Tree, make: Callable[[Leaf, Any], Any], *, free: Collection[str] = (), path: str = ""
) -> Tree:
    """The saved tree inside the containers of ``like``, which it fits; ``make`` turns descriptions into leaves.

    ``make`` receives a description and the template's leaf, or ``None`` for it below a free path.

    Raises:
        ValueError: a free part holds a container that cannot be made without a template.
    """
    if path in free:
        return _rebuild_plain(saved, make, path)
    if not isinstance(saved, Container):
        return make(saved, like)
    opened = open_node(like)
    if opened is None:
        raise ValueError(f"the template has no container at {path or 'its root'}")
    children = {}
    for part, child in zip(saved.parts, saved.children, strict=True):
        children[part] = rebuild(child, opened.children.get(part), make, free=free, path=join(path, part))
    return opened.close(children)


def plain_problem(node: Node, path: str) -> str | None:
    """Why a tree cannot be made without a template, if so."""
    if not isinstance(node, Container):
        return None
    if node.kind not in ("none", "tuple", "list", "dict"):
        return f"{path}: {node} cannot be made without a template; use dicts, lists and tuples"
    if not all(isinstance(key, str | int) for key in node.keys):
        return f"{path}: only text and whole numbers can be keys of a dict that is made without a template"
    problems = (plain_problem(child, join(path, part)) for part, child in zip(node.parts, node.children, strict=True))
    return next((problem for problem in problems if problem), None)


def to_json(node: Node, scalar: Callable[[Scalar], Json] = scalar_to_json) -> Json:
    """A description as JSON, with ``scalar`` giving the values of scalars."""
    if isinstance(node, Container):
        children = [to_json(child, scalar) for child in node.children]
        return {"kind": node.kind, "name": node.name, "keys": list(node.keys), "children": children}
    if isinstance(node, TensorSpec):
        return {
            "kind": "tensor",
            "dtype": node.dtype,
            "shape": list(node.shape),
            "strides": list(node.strides),
            "storage": node.storage,
            "offset": node.offset,
        }
    if isinstance(node, Scalar):
        return {"kind": node.type, "value": scalar(node)}
    if isinstance(node, ShardedSpec):
        return sharded_to_json(node)
    raise TypeError(f"a leaf of type {node} cannot be stored")


def from_json(data: Json) -> Node:
    """The inverse of `to_json`, trusting nothing.

    Raises:
        ValueError: no description is written like that.
        ResumeRefused: it has a dtype that this version of torch lacks.
    """
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise ValueError("a node without a kind")
    kind = str(data["kind"])
    if kind == "tensor":
        return _tensor_from_json(data)
    if kind == "sharded":
        _check_fields(data, "kind", "dtype", "shape", "pieces")
        return sharded_from_json(data)
    if kind in _KINDS.values():
        return _container_from_json(data)
    _check_fields(data, "kind", "value")
    return scalar_from_json(kind, data["value"])


def _alike(saved: Node, expected: Node) -> bool:
    """Whether two nodes, one of them a leaf, agree in what a template decides: type, dtype and shape, and no more."""
    if isinstance(saved, TensorSpec | ShardedSpec) and isinstance(expected, TensorSpec):
        return saved.dtype == expected.dtype and saved.shape == expected.shape
    return type(saved) is type(expected) and not isinstance(saved, Container) and str(saved) == str(expected)


def _reorder(built: Any, parts: list[str]) -> Any:
    """A fresh dict with its keys in the given order, which a sum over its values may notice."""
    keys = {f"[{key!r}]": key for key in built}
    for part in parts:
        built[keys[part]] = built.pop(keys[part])
    return built


def _rebuild_plain(saved: Node, make: Callable[[Leaf, Any], Any], path: str) -> Tree:
    problem = plain_problem(saved, path)
    if problem:
        raise ValueError(problem)
    return _plain(saved, make)


def _plain(saved: Node, make: Callable[[Leaf, Any], Any]) -> Tree:
    if not isinstance(saved, Container):
        return make(saved, None)
    children = [_plain(child, make) for child in saved.children]
    if saved.kind == "dict":
        return dict(zip(saved.keys, children, strict=True))
    if saved.kind == "none":
        return None
    return tuple(children) if saved.kind == "tuple" else children


def _key_to_json(key: Any) -> Json:
    if key is None or type(key) in (str, bool) or (type(key) is int and abs(key) < 1 << 63):
        return key
    return {"repr": repr(key)}


def _check_fields(data: dict[str, Json], *names: str) -> None:
    if data.keys() != set(names):
        raise ValueError(f"a {str(data['kind'])[:40]!r} node with fields {sorted(data)}"[:200])


def _container_from_json(data: dict[str, Json]) -> Container:
    _check_fields(data, "kind", "name", "keys", "children")
    kind, name, keys, children = data["kind"], data["name"], data["keys"], data["children"]
    if not isinstance(name, str) or not isinstance(keys, list) or not isinstance(children, list):
        raise ValueError("a container with fields of the wrong types")
    for key in keys:
        opaque = isinstance(key, dict) and key.keys() == {"repr"} and isinstance(key["repr"], str)
        if not opaque and key is not None and not isinstance(key, str | int):
            raise ValueError("a key that is neither text nor a whole number")
    node = Container(str(kind), name, tuple(keys), tuple(from_json(child) for child in children))
    if len(keys) != (0 if kind in _SEQUENCES.values() else len(children)) or len(set(node.parts)) != len(children):
        raise ValueError(f"a {kind} whose keys do not match its children")
    if kind == "none" and children:
        raise ValueError("None with children")
    return node


def _tensor_from_json(data: dict[str, Json]) -> TensorSpec:
    _check_fields(data, "kind", "dtype", "shape", "strides", "storage", "offset")
    dtype, storage = dtype_from_json(data["dtype"]), data["storage"]
    shape, strides = sizes_from_json(data["shape"]), sizes_from_json(data["strides"])
    offset = count_from_json(data["offset"])
    if len(shape) != len(strides) or math.prod(max(size, 1) for size in shape) >= 1 << 62:
        raise ValueError("a tensor of an impossible shape")
    return TensorSpec(dtype, shape, strides, None if storage is None else count_from_json(storage), offset)
