"""A tree as the content of a checkpoint's files, the tensors by reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ..types import Tree
from . import canonical, header, storages, structure
from .checksum import Checksums, FileEntry, entry_of
from .leaves import Leaf, Scalar, scalar_to_json

TENSORS = "tensors.safetensors"
STATE = "state.json"
MAX_STATE_SIZE = 64 << 20
# In canonical JSON these bytes stand for nothing else: within a string the quotes would be escaped, no other
# field has this name, and no scalar is written as null.
_SLOT = b'"value":null'


class Snapshot(NamedTuple):
    """A tree ready to be written: the two files' content, the tensors' by reference.

    Attributes:
        state: the content of ``state.json``.
        start: the tensor file's header.
        tensors: all tensors, in the order of the layout's numbers.
        layout: the numbers of the tensors that look at a range of bytes, its extent, and which tensor fills it.
    """

    state: bytes
    start: bytes
    tensors: tuple[torch.Tensor, ...]
    layout: tuple[tuple[tuple[int, ...], storages.Extent, int | None], ...]

    @property
    def size(self) -> int:
        """The length of the tensor file in bytes."""
        return len(self.start) + sum(extent.stop - extent.start for _, extent, _ in self.layout)

    def tensor_chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the tensor file, one range in memory at a time where ranges have to be copied."""
        return itertools.chain([self.start], map(storages.content, self.ranges()))

    def ranges(self) -> Iterator[storages.Range]:
        """The ranges of bytes of the tensor file, in order."""
        for numbers, extent, whole in self.layout:
            yield storages.Range(tuple((number, self.tensors[number]) for number in numbers), extent, whole)

    def files(self) -> dict[str, FileEntry]:
        """What the manifest would say of the files, without writing them."""
        checksums = Checksums()
        for piece in self.tensor_chunks():
            checksums.update(piece)
        return {TENSORS: checksums.entry(), STATE: entry_of(self.state)}


def layout_of(ranges: Iterable[storages.Range]) -> tuple[tuple[tuple[int, ...], storages.Extent, int | None], ...]:
    """Ranges without their tensors, whose numbers they keep; see `Snapshot`."""
    return tuple((tuple(number for number, _ in found.views), found.extent, found.whole) for found in ranges)


class _Survey(NamedTuple):
    """The leaves of a tree, and all that its layout depends on."""

    signature: tuple[Any, ...]
    tensors: list[torch.Tensor]
    scalars: list[Scalar]


class _Layout(NamedTuple):
    """What follows from a tree's structure: ``state.json`` around the scalars, the header, the ranges by leaf."""

    around: tuple[bytes, ...]
    start: bytes
    ranges: tuple[tuple[tuple[int, ...], storages.Extent, int | None], ...]


class Snapshots:
    """Takes snapshots, and remembers what follows from the structure alone as long as that stays the same."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Any, ...], _Layout] | None = None

    def take(self, tree: Tree) -> Snapshot:
        """Describe a tree that `check_saveable` accepts, copying no tensor. Equal trees give equal files.

        Raises:
            ValueError: there are more leaves than a checkpoint can describe.
        """
        found = _survey(tree)
        if self._last is None or self._last[0] != found.signature:
            self._last = found.signature, _lay_out(tree, found.tensors)
        layout = self._last[1]
        state = bytearray(layout.around[0])
        for scalar, after in zip(found.scalars, layout.around[1:], strict=True):
            state += b'"value":' + canonical.dump(scalar_to_json(scalar)).rstrip() + after
        if len(state) > MAX_STATE_SIZE:
            raise ValueError(f"the state's structure takes {len(state)} bytes; at most {MAX_STATE_SIZE} are possible")
        return Snapshot(bytes(state), layout.start, tuple(found.tensors), layout.ranges)


def snapshot(tree: Tree) -> Snapshot:
    """The same once."""
    return Snapshots().take(tree)


def _survey(tree: Tree) -> _Survey:
    signature: list[Any] = []
    tensors: list[torch.Tensor] = []
    scalars: list[Scalar] = []
    _visit(tree, signature, tensors, scalars, {})
    return _Survey(tuple(signature), tensors, scalars)


def _visit(
    node: Any, signature: list[Any], tensors: list[torch.Tensor], scalars: list[Scalar], numbers: dict[int, int]
) -> None:
    # Not within `_survey`: it would hold itself, and with it all tensors, until the garbage collector comes by.
    kind = type(node)
    if isinstance(node, torch.Tensor):
        storage = numbers.setdefault(node.untyped_storage()._cdata, len(numbers))
        signature.append((node.dtype, node.shape, node.stride(), node.storage_offset(), storage))
        tensors.append(node)
    elif kind is dict:  # most of a state; like the next, quicker to walk through than to take apart
        signature.append((dict, _exact(node)))
        for child in node.values():
            _visit(child, signature, tensors, scalars, numbers)
    elif kind is tuple or kind is list:
        signature.append((kind, len(node)))
        for child in node:
            _visit(child, signature, tensors, scalars, numbers)
    elif (opened := structure.open_node(node)) is not None:
        signature.append((opened.kind, opened.name, _exact(opened.keys), len(opened.children)))
        for child in opened.children.values():
            _visit(child, signature, tensors, scalars, numbers)
    else:
        signature.append(kind)
        scalars.append(Scalar(kind.__name__, node))


def _exact(keys: Iterable[Any]) -> tuple[Any, ...]:
    """Keys that are equal only where they are written alike: of dict keys, True equals 1 and is not."""
    return tuple(key if type(key) is str else (type(key), repr(key)) for key in keys)


def _lay_out(tree: Tree, tensors: list[torch.Tensor]) -> _Layout:
    ranges, specs = storages.group(tensors)
    rest, paths = iter(specs), list[str]()

    def describe(path: str, leaf: Any) -> Leaf:
        if isinstance(leaf, torch.Tensor):
            paths.append(path)
            return next(rest)
        return Scalar(type(leaf).__name__, leaf)

    node = structure.outline(tree, describe)
    entries = [entry_of_range(found, paths) for found in ranges]
    skeleton = structure.to_json(node, lambda scalar: None)
    state = canonical.dump({"entries": [list(entry) for entry in entries], "structure": skeleton})
    return _Layout(tuple(state.split(_SLOT)), header.encode(entries), layout_of(ranges))


def entry_of_range(found: storages.Range, paths: list[str]) -> header.Entry:
    """The entry of a range of bytes in the tensor file; ``paths`` are those of all leaves that are tensors."""
    # For other readers of the file: a leaf that fills its range goes by its own name, dtype and shape.
    if found.whole is not None:
        number, tensor = found.views[found.whole]
        dtype = header.dtype_name(str(tensor.dtype).removeprefix("torch."))
        if dtype is not None:
            return header.Entry(entry_name(paths[number]), dtype, tuple(tensor.shape))
    return header.Entry(entry_name(paths[found.views[0][0]]), "U8", (found.size,))


def entry_name(path: str) -> str:
    """What a leaf is called in the tensor file."""
    return f"state{path}" if path[:1] in ("", "[") else f"state.{path}"
