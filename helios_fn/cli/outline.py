"""The tree of a saved state as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..checkpoint.leaves import DTYPES, Leaf, Scalar, ShardedSpec, TensorSpec
from ..checkpoint.structure import Container, Node, join, leaf_items
from ..patterns import name_of
from ..text import leaves, shown, size, table

_NAME_WIDTH = 52
_VALUE_WIDTH = 40


def outline(node: Node) -> list[str]:
    """One line for each container and leaf: name, type, size, and with which other leaf it shares memory."""
    owners: dict[int, str] = {}
    sharing: dict[str, str] = {}
    for path, leaf in leaf_items(node):
        if isinstance(leaf, TensorSpec) and leaf.storage is not None:
            owner = owners.setdefault(leaf.storage, path)
            if owner != path:
                sharing[path] = owner
    return table(list(_rows("state", node, "", 0, sharing)), right=[2])


def _rows(part: str, node: Node, path: str, depth: int, sharing: dict[str, str]) -> Iterator[tuple[str, ...]]:
    name = "  " * depth + shown(part, _NAME_WIDTH - 2 * depth)
    if not isinstance(node, Container):
        yield name, _kind(node), _size(node), _note(node, path, sharing)
        return
    below = dict(leaf_items(node, path))
    own = [leaf for place, leaf in below.items() if place not in sharing]
    kind = "None" if node.kind == "none" else shown(node.name or node.kind)
    total = sum(_bytes(leaf) for leaf in own)
    yield name, kind, size(total) if total else "", "" if not below else leaves(len(below))
    for key, child in zip(node.parts, node.children, strict=True):
        yield from _rows(name_of(key), child, join(path, key), depth + 1, sharing)


def _kind(leaf: Leaf) -> str:
    if isinstance(leaf, Scalar):
        return shown(f"{leaf.type} {leaf.value!r}", _VALUE_WIDTH)
    return str(leaf)


def _size(leaf: Leaf) -> str:
    return size(_bytes(leaf)) if isinstance(leaf, TensorSpec | ShardedSpec) else ""


def _bytes(leaf: Leaf) -> int:
    if isinstance(leaf, TensorSpec | ShardedSpec):
        return math.prod(leaf.shape) * DTYPES[leaf.dtype].itemsize
    return 0


def _note(leaf: Leaf, path: str, sharing: dict[str, str]) -> str:
    notes = [f"shares memory with {shown(sharing[path])}"] if path in sharing else []
    if isinstance(leaf, TensorSpec) and leaf.strides and not _is_row_major(leaf):
        notes.append(f"strides {list(leaf.strides)}")
    if isinstance(leaf, ShardedSpec):
        notes.append(f"in {len(leaf.pieces)} piece{'' if len(leaf.pieces) == 1 else 's'}")
    return ", ".join(notes)


def _is_row_major(leaf: TensorSpec) -> bool:
    expected = 1
    for length, stride in zip(reversed(leaf.shape), reversed(leaf.strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= max(length, 1)
    return True
