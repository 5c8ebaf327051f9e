"""What a checkpoint or a plain safetensors file holds, leaf by leaf, without a template."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .. import tree
from ..errors import CheckpointError
from ..patterns import name_of
from . import format
from .files import OS, FileSystem, disk_errors
from .leaves import DTYPE_NAMES, Leaf, TensorSpec
from .manifest import Manifest
from .structure import Container, Node, join, leaf_items

_CPU = torch.device("cpu")

# fmt: off
SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
# fmt: on
"""The dtypes of safetensors files by their names there."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is stored at a path.

    Attributes:
        path: the checkpoint's folder, or the safetensors file.
        manifest: what the checkpoint says of itself; ``None`` for a plain file.
        structure: containers and descriptions of leaves. A plain file is a dict of tensors.
    """

    path: Path
    manifest: Manifest | None
    structure: Node
    _read: Callable[[Mapping[str, torch.device]], dict[str, Any]] = dataclasses.field(repr=False)

    def leaves(self) -> dict[str, Leaf]:
        """The descriptions of the leaves by path, in the order of `helios_fn.tree.paths`."""
        found = dict(leaf_items(self.structure))
        return {path: found[path] for path in tree.leaves(_ordered(self.structure, ""))}

    def values(self, places: Mapping[str, torch.device] | None = None) -> dict[str, Any]:
        """The leaves at the paths in ``places``, on these devices; all of them, on the CPU, where it is ``None``.

        Raises:
            CheckpointError: a file is damaged. All of a checkpoint is checked, whatever is asked for.
        """
        if places is None:
            places = dict.fromkeys(self.leaves(), _CPU)
        with disk_errors(f"read {self.path}"):
            found = self._read(places)
        return {path: found[path] for path in places}

    def digest(self) -> str:
        """`helios_fn.tree.digest` of the tree that was saved: of its leaves' paths, types, dtypes, shapes and bits."""
        return tree.digest_items(self.values().items())


def open_contents(path: Path | str, *, files: FileSystem = OS) -> Contents:
    """Find out what is stored in a checkpoint's folder, or in a file that ends in ``.safetensors``.

    Raises:
        CheckpointError: neither is there, or it is damaged.
        ResumeRefused: it was written for other versions of helios_fn or torch.
    """
    path = Path(path)
    with disk_errors(f"read {path}"):
        if path.suffix == ".safetensors" and path.is_file():
            return _open_file(path)
        path = path.resolve()
        manifest = format.read_manifest(path, files=files)
        structure = format.read_structure(path, manifest, files=files)

        def read(places: Mapping[str, torch.device]) -> dict[str, Any]:
            return format.read_leaves(path, manifest, places, files=files)

        return Contents(path, manifest, structure, read)


def by_name(paths: Iterable[str], where: str) -> dict[str, str]:
    """Paths by the names of their leaves, see `helios_fn.patterns.name_of`.

    Raises:
        ValueError: two leaves have the same name.
    """
    found: dict[str, str] = {}
    for path in paths:
        other = found.setdefault(name_of(path), path)
        if other != path:
            raise ValueError(f"{other} and {path} {where} have the same name, {name_of(path)!r}")
    return found


def _open_file(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            specs = [_spec(path, name, file.get_slice(name)) for name in names]
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}") from error

    def read(places: Mapping[str, torch.device]) -> dict[str, Any]:
        with safe_open(path, framework="pt") as file:
            # A copy: what safetensors hands out may be a view of the file, which others can change.
            return {f"[{name!r}]": _copy(file, name, places) for name in names if f"[{name!r}]" in places}

    return Contents(path, None, Container("dict", "", tuple(names), tuple(specs)), read)


def _copy(file: Any, name: str, places: Mapping[str, torch.device]) -> torch.Tensor:
    return file.get_tensor(name).clone().to(places[f"[{name!r}]"])


def _spec(path: Path, name: str, entry: Any) -> TensorSpec:
    dtype = SAFETENSORS_DTYPES.get(entry.get_dtype())
    if dtype is None or dtype not in DTYPE_NAMES.values():
        raise CheckpointError(f"{path}: {name} has dtype {entry.get_dtype()}, which cannot be read here")
    return TensorSpec(dtype, tuple(entry.get_shape()), (), None, 0)


def _ordered(node: Node, path: str) -> Any:
    """A tree of plain containers around the paths of the leaves, which optree visits in its canonical order."""
    if not isinstance(node, Container):
        return path
    children = [_ordered(child, join(path, part)) for part, child in zip(node.parts, node.children, strict=True)]
    if node.kind in ("dict", "defaultdict", "ordereddict"):
        keys = [key["repr"] if isinstance(key, dict) else key for key in node.keys]
        kind: type = collections.OrderedDict if node.kind == "ordereddict" else dict
        return kind(zip(keys, children, strict=True))
    return children
