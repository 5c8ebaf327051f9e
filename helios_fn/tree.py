"""The pytree vocabulary: flatten, map, name, compare and digest nested containers of leaves.

Containers are dicts, lists, tuples, NamedTuples, ``None`` (an empty container) and the frozen
dataclasses given to `register`. Dict keys are visited in sorted order, so equal trees have equal
leaf orders. The engine is [optree](https://optree.readthedocs.io), in a namespace of our own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import optree
import torch

from . import tracing
from .dtensors import is_sharded
from .types import Tree

NAMESPACE = "helios_fn"
T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Make a frozen dataclass a pytree node: its fields are its children. Use as a decorator.

    Raises:
        TypeError: ``cls`` is not a dataclass, or not frozen (a node must never change in place).
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__qualname__} is not a dataclass: write @register above @dataclass(frozen=True)")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{cls.__qualname__} can be changed in place: declare it @dataclass(frozen=True)")
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(node: Any) -> tuple[tuple[Any, ...], None, tuple[str, ...]]:
        return tuple(getattr(node, name) for name in names), None, names

    def unflatten(_: None, children: Iterable[Any]) -> Any:
        # Not through __init__: a transform may carry leaves that __post_init__ would refuse.
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    # optree's types ask for a collection, which a node need not be.
    optree.register_pytree_node(
        cls,  # type: ignore[arg-type]
        flatten,
        unflatten,  # type: ignore[arg-type]
        path_entry_type=optree.GetAttrEntry,
        namespace=NAMESPACE,
    )
    return cls


def leaves(tree: Tree) -> list[Any]:
    """The leaves in canonical order."""
    return optree.tree_leaves(tree, namespace=NAMESPACE)


def flatten(tree: Tree) -> tuple[list[Any], optree.PyTreeSpec]:
    """The leaves in canonical order and the structure they came from."""
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def unflatten(treespec: optree.PyTreeSpec, leaves: Iterable[Any]) -> Tree:
    """The inverse of `flatten`."""
    return optree.tree_unflatten(treespec, leaves)


def structure(tree: Tree) -> optree.PyTreeSpec:
    """The structure without the leaves. Two trees of one structure have equal ones."""
    return optree.tree_structure(tree, namespace=NAMESPACE)


def map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to each leaf (and the leaves of ``rest`` at the same place).

    Raises:
        ValueError: a tree of ``rest`` has another structure.
    """
    return optree.tree_map(function, tree, *rest, namespace=NAMESPACE)


@functools.lru_cache(maxsize=256)
def _paths(treespec: optree.PyTreeSpec) -> tuple[str, ...]:
    return tuple(accessor.codify("").removeprefix(".") for accessor in optree.treespec_accessors(treespec))


def paths(tree: Tree) -> list[str]:
    """The path of each leaf in canonical order, such as ``params['head.weight']``; ``''`` for a bare leaf.

    Example:
        >>> hf.tree.paths({"head": {"weight": torch.zeros(2)}, "layers": [torch.zeros(1), 3]})
        ["['head']['weight']", "['layers'][0]", "['layers'][1]"]
    """
    # The compiler looks through a cache, but warns of it.
    find = _paths.__wrapped__ if torch.compiler.is_compiling() else _paths
    return list(find(structure(tree)))


def items(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Pairs of path and leaf in canonical order."""
    found, treespec = flatten(tree)
    return zip(_paths(treespec), found, strict=True)


_LEAF_TYPES = frozenset((torch.Tensor, torch.nn.Parameter, bool, int, float, complex, str))


class Flattener:
    """Flattens trees of one structure again and again, at a fifth of the cost of `flatten`.

    A cached structure both flattens faster and checks that the structure is still the same; another
    structure is flattened the slow way and becomes the cached one. Not for use inside a graph that
    is being compiled, where it always takes the slow way.
    """

    __slots__ = ("_treespec",)

    def __init__(self) -> None:
        self._treespec: optree.PyTreeSpec | None = None

    def __call__(self, tree: Tree) -> tuple[list[Any], optree.PyTreeSpec]:
        """The leaves and the structure, as `flatten` gives them."""
        if torch.compiler.is_compiling():
            return flatten(tree)
        return self.outside(tree)

    def outside(self, tree: Tree) -> tuple[list[Any], optree.PyTreeSpec]:
        """The same for callers who know that they are outside of a graph that is being compiled."""
        treespec = self._treespec
        if treespec is not None:
            try:
                found = treespec.flatten_up_to(tree)
            except ValueError:
                pass
            else:
                # "Up to" leaves whole subtrees where the cached structure has leaves.
                if _LEAF_TYPES.issuperset({type(leaf) for leaf in found}):
                    return found, treespec
        found, self._treespec = flatten(tree)
        return found, self._treespec


def tensors(tree: Tree) -> list[torch.Tensor]:
    """The leaves that are tensors, in canonical order. Unlike `flatten` it can be compiled whatever the tree holds."""
    if not torch.compiler.is_compiling():
        return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for _, child in _children(tree) for leaf in tensors(child)]


def with_tensors(tree: Tree, new: Sequence[torch.Tensor]) -> Tree:
    """``tree`` with the tensors that `tensors` lists replaced, in the same order; other leaves stay.

    Raises:
        ValueError: ``new`` has fewer or more tensors than ``tree``.
    """
    remaining = iter(new)
    if torch.compiler.is_compiling():
        return _with_tensors(tree, remaining)
    found, treespec = flatten(tree)
    count = sum(isinstance(leaf, torch.Tensor) for leaf in found)
    if count != len(new):
        raise ValueError(f"a tree of {count} tensors cannot take {len(new)}")
    return unflatten(treespec, [next(remaining) if isinstance(leaf, torch.Tensor) else leaf for leaf in found])


def select(condition: torch.Tensor, first: Tree, second: Tree) -> Tree:
    """``first`` where ``condition`` (0-d) holds, else ``second``: trees of one structure. No value is read."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return with_tensors(first, [a if a is b else torch.where(condition.to(a.device), a, b) for a, b in pairs])


def stored(new: Tree, old: Tree, *, donate: bool) -> Tree:
    """``new``, in a compiled region with ``donate`` in the tensors of ``old``: `helios_fn.tracing.stored` for trees."""
    return with_tensors(new, tracing.stored(tensors(new), tensors(old), donate=donate))


def _with_tensors(tree: Tree, remaining: Iterator[torch.Tensor]) -> Tree:
    if isinstance(tree, torch.Tensor):
        return next(remaining)
    children = [(name, _with_tensors(child, remaining)) for name, child in _children(tree)]
    if isinstance(tree, dict):
        return dict(children)
    if isinstance(tree, tuple | list):
        values = [child for _, child in children]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return dataclasses.replace(tree, **dict(children)) if children else tree


def _children(node: Any) -> list[tuple[Any, Any]]:
    """Names and children of a node, in canonical order. By hand: dynamo does not trace optree on empty dicts."""
    if isinstance(node, dict):
        return [(name, node[name]) for name in sorted(node)]
    if isinstance(node, tuple | list):
        return list(enumerate(node))
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    return []


class Difference(NamedTuple):
    """Where two trees differ: the path, what differs, and both sides in words."""

    path: str
    kind: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.path or '(root)'}: {self.kind}: {self.left} != {self.right}"


def diff(left: Tree, right: Tree) -> list[Difference]:
    """All differences between two trees, exactly: structure, types, dtypes, shapes and bits.

    NaN equals NaN of the same bits and 0.0 differs from -0.0. Devices and strides are placement,
    not value, and are not compared.

    Example:
        >>> for difference in hf.tree.diff({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 2.5])}):
        ...     print(difference)
        ...
        ['w']: 1 of 2 elements, first at [1]: 2.0 != 2.5
    """
    here, there = dict(items(left)), dict(items(right))
    found = [Difference(path, "missing on the right", describe(here[path]), "-") for path in here if path not in there]
    found += [Difference(path, "missing on the left", "-", describe(there[path])) for path in there if path not in here]
    for path in here:
        if path in there:
            difference = _diff_leaf(path, here[path], there[path])
            if difference is not None:
                found.append(difference)
    if not found and structure(left) != structure(right):
        found.append(Difference("", "structure", str(structure(left)), str(structure(right))))
    return found


def equal(left: Tree, right: Tree) -> bool:
    """Whether two trees are equal bit for bit, see `diff`."""
    here, treespec = flatten(left)
    there, other = flatten(right)
    return treespec == other and all(_diff_leaf("", a, b) is None for a, b in zip(here, there, strict=True))


def digest(tree: Tree) -> str:
    """A SHA-256 over paths, types, dtypes, shapes and bits: equal trees, equal digests, on any device.

    Example:
        >>> hf.tree.digest({"b": 0.0, "a": 1}) == hf.tree.digest({"a": 1, "b": 0.0})
        True
        >>> hf.tree.digest(0.0) == hf.tree.digest(-0.0)
        False
    """
    return digest_items(items(tree))


def digest_items(pairs: Iterable[tuple[str, Any]]) -> str:
    """The same for a tree that exists as the pairs of `items` only."""
    hasher = hashlib.sha256()
    for path, leaf in pairs:
        if isinstance(leaf, torch.Tensor):
            head, body = f"{path}\0{leaf.dtype}\0{tuple(leaf.shape)}\0", memoryview(tensor_bytes(leaf))
        else:
            head, body = f"{path}\0{type(leaf).__name__}\0", memoryview(scalar_bytes(leaf))
        hasher.update(struct.pack("<QQ", len(head), len(body)))
        hasher.update(head.encode())
        hasher.update(body)
    return hasher.hexdigest()


def describe(leaf: Any) -> str:
    """A leaf in a few words: ``float32[64, 10]`` for a tensor, type and value for a scalar."""
    if isinstance(leaf, torch.Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
    text = repr(leaf)
    return f"{type(leaf).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a dense tensor in row-major order as bytes, copied only where needed.

    Raises:
        TypeError: the tensor is sharded, so that this process has a part of them only.
    """
    if is_sharded(tensor):
        raise TypeError(
            f"a sharded tensor, {describe(tensor)}, is not to be read in one process: compare or digest what "
            "hf.distributed.gathered(tree) returns, in all of them"
        )
    dense = tensor.detach().cpu().contiguous()
    # Not reshape: a contiguous tensor of one element may have any stride, and keeps it.
    flat = dense.as_strided((dense.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data.cast("B") if flat.numel() else memoryview(b"")


def scalar_bytes(value: Any) -> bytes:
    """A Python scalar as bytes that tell apart all that ``==`` confuses (NaN, -0.0, True and 1)."""
    if isinstance(value, np.ndarray):
        # Not a leaf of a state, but of batches that some people make.
        return f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    return repr(value).encode()


def _diff_leaf(path: str, left: Any, right: Any) -> Difference | None:
    if left is right:
        return None
    tensors = isinstance(left, torch.Tensor), isinstance(right, torch.Tensor)
    if not all(tensors):
        if any(tensors) or type(left) is not type(right):
            return Difference(path, "type", describe(left), describe(right))
        if scalar_bytes(left) != scalar_bytes(right):
            return Difference(path, "value", repr(left), repr(right))
        return None
    if left.dtype != right.dtype or left.shape != right.shape:
        return Difference(path, "dtype or shape", describe(left), describe(right))
    return _diff_tensor(path, left.detach().cpu(), right.detach().cpu())


def _diff_tensor(path: str, left: torch.Tensor, right: torch.Tensor) -> Difference | None:
    if tensor_bytes(left) == tensor_bytes(right):
        return None
    size = left.element_size()
    bytes_left = torch.frombuffer(bytearray(tensor_bytes(left)), dtype=torch.uint8).view(-1, size)
    bytes_right = torch.frombuffer(bytearray(tensor_bytes(right)), dtype=torch.uint8).view(-1, size)
    differs = (bytes_left != bytes_right).any(dim=1).nonzero().flatten()
    first = int(differs[0])
    index = [int(i) for i in np.unravel_index(first, tuple(left.shape))]  # torch's own imports the compiler
    kind = f"{len(differs)} of {left.numel()} elements, first at {index}"
    return Difference(path, kind, *(repr(side.reshape(-1)[first].item()) for side in (left, right)))
