"""One checkpoint folder: three files, the last of which proves the others.

Here damage is a `CheckpointError`, and trouble with the disk or the machine is an ``OSError``.

``tensors.safetensors`` holds ranges of bytes, ``state.json`` the structure, the scalars and where each
tensor lies in those ranges, ``manifest.json`` the lengths and digests of both. Other files in the
folder are never read. Nothing in a folder names code, or a class to be constructed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import tree as trees
from ..errors import CheckpointError, ResumeRefused
from ..types import Json, Tree
from . import canonical, header, manifest, storages, structure
from .files import (
    CHUNK,
    OS,
    FileEntry,
    FileSystem,
    digest,
    joined,
    open_file,
    read_exactly,
    read_file,
    write_file,
)
from .leaves import Leaf, Scalar, TensorSpec
from .manifest import Manifest

TENSORS = "tensors.safetensors"
STATE = "state.json"
MAX_STATE_SIZE = 64 << 20
_ROWS_SHOWN = 20


class Snapshot(NamedTuple):
    """A tree ready to be written: the two files' content, the tensors' by reference."""

    state: bytes
    start: bytes
    ranges: tuple[storages.Range, ...]

    def tensor_chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the tensor file, one range in memory at a time where ranges have to be copied."""
        return joined(itertools.chain([self.start], (storages.content(found) for found in self.ranges)))

    def files(self) -> dict[str, FileEntry]:
        """What the manifest would say of the files, without writing them."""
        return {TENSORS: digest(self.tensor_chunks()), STATE: digest([self.state])}


class Stored(NamedTuple):
    """What ``state.json`` says: the structure, and the entries of the tensor file in order."""

    structure: structure.Node
    entries: tuple[header.Entry, ...]


def snapshot(tree: Tree) -> Snapshot:
    """Describe a tree that `check_saveable` accepts, copying no tensor. Equal trees give equal files.

    Raises:
        ValueError: there are more leaves than a checkpoint can describe.
    """
    tensors = {path: leaf for path, leaf in trees.items(tree) if isinstance(leaf, torch.Tensor)}
    ranges, specs = storages.group(list(tensors.values()))
    spec_at = dict(zip(tensors, specs, strict=True))

    def describe(path: str, leaf: Any) -> Leaf:
        return spec_at[path] if path in spec_at else Scalar(type(leaf).__name__, leaf)

    node = structure.outline(tree, describe)
    entries = [_entry(found, list(tensors)) for found in ranges]
    state = canonical.dump({"entries": [list(entry) for entry in entries], "structure": structure.to_json(node)})
    if len(state) > MAX_STATE_SIZE:
        raise ValueError(f"the structure of the state takes {len(state)} bytes; at most {MAX_STATE_SIZE} are possible")
    return Snapshot(state, header.encode(entries), tuple(ranges))


def write(
    files: FileSystem,
    folder: Path,
    content: Snapshot,
    description: Manifest,
    *,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a checkpoint into a new folder, durably but for the folder's own name.

    ``description`` is completed with the files' lengths and digests, and returned. ``check`` is called when all
    tensors have been read for the last time: if it raises, there is no manifest that would prove them.

    Raises:
        OSError: the disk refused.
    """
    files.mkdir(folder)
    written = {TENSORS: write_file(files, folder / TENSORS, content.tensor_chunks())}
    written[STATE] = write_file(files, folder / STATE, [content.state])
    complete = description._replace(files=written)
    check()
    write_file(files, folder / manifest.FILE_NAME, [manifest.encode(complete)])
    files.sync_folder(folder)
    return complete


def read_manifest(folder: Path, *, files: FileSystem = OS) -> Manifest:
    """What a checkpoint says of itself; its other files are not looked at.

    Raises:
        CheckpointError: there is no manifest, or it is damaged.
    """
    if not files.is_folder(folder):
        raise CheckpointError(f"{folder} is not a folder")
    data = read_file(files, folder / manifest.FILE_NAME, manifest.MAX_SIZE)
    try:
        found = manifest.decode(data)
    except CheckpointError as error:
        raise type(error)(f"{folder}: {error}") from error
    if found.files.keys() != {TENSORS, STATE}:
        raise CheckpointError(f"{folder}: {manifest.FILE_NAME} is damaged: it lists {sorted(found.files)}"[:400])
    return found


def verify(path: Path, *, files: FileSystem = OS) -> Manifest:
    """Read a whole checkpoint and check each byte of it.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
        ResumeRefused: it is sound, but for other versions of helios_fn or torch.
    """
    found = read_manifest(path, files=files)
    stored = _read_state(files, path, found)
    sizes = [entry.size for entry in stored.entries]
    scratch = memoryview(bytearray(min(CHUNK, max(sizes, default=0))))
    pieces = (scratch[: min(CHUNK, size - start)] for size in sizes for start in range(0, size, CHUNK))
    _read_tensors(files, path, found, stored, pieces)
    return found


def load(path: Path, found: Manifest, like: Tree, *, free: Collection[str] = (), files: FileSystem = OS) -> Tree:
    """Load a checkpoint whose manifest is known into the structure of ``like``, checking each byte.

    Tensors come back in fresh memory on the devices of the template's leaves; on the CPU where the
    template has none (below ``free`` paths) or holds no values (on the meta device).

    Raises:
        CheckpointError: the checkpoint is damaged.
        ResumeRefused: its structure, types, dtypes or shapes differ from the template's.
    """
    stored = _read_state(files, path, found)
    expected = structure.outline(like, structure.expected_leaf)
    mismatches = list(structure.compare(stored.structure, expected, free=free))
    if mismatches:
        raise ResumeRefused(_table(path, mismatches))
    memory: list[torch.Tensor] = []

    def targets() -> Iterator[memoryview]:
        for entry in stored.entries:  # lazily: the lengths are checked before any memory is asked for
            memory.append(storages.allocate(entry.size))
            yield storages.as_bytes(memory[-1])

    _read_tensors(files, path, found, stored, targets())
    place = storages.Placer(memory)

    def make(leaf: Leaf, template: Any) -> Any:
        if isinstance(leaf, Scalar):
            return leaf.value
        known = isinstance(template, torch.Tensor) and template.device.type != "meta"
        return place(leaf, template.device if known else torch.device("cpu"))  # type: ignore[arg-type]

    try:
        return structure.rebuild(stored.structure, like, make, free=free)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _entry(found: storages.Range, paths: list[str]) -> header.Entry:
    # For other readers of the file: a leaf that fills its range goes by its own name, dtype and shape.
    whole = storages.whole_view(found)
    if whole is not None:
        number, tensor = whole
        dtype = header.dtype_name(str(tensor.dtype).removeprefix("torch."))
        if dtype is not None:
            return header.Entry(_entry_name(paths[number]), dtype, tuple(tensor.shape))
    return header.Entry(_entry_name(paths[found.views[0][0]]), "U8", (found.size,))


def _entry_name(path: str) -> str:
    return f"state{path}" if path[:1] in ("", "[") else f"state.{path}"


def _read_state(files: FileSystem, folder: Path, found: Manifest) -> Stored:
    path, entry = folder / STATE, found.files[STATE]
    data = read_file(files, path, min(entry.size, MAX_STATE_SIZE))
    if digest([data]) != entry:
        raise CheckpointError(f"{path} is damaged: its length or digest differs from the manifest's")
    try:
        stored = _stored_from_json(canonical.parse(data))
        specs = [leaf for leaf in structure.leaf_specs(stored.structure) if isinstance(leaf, TensorSpec)]
        storages.check(specs, [item.size for item in stored.entries])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return stored


def _stored_from_json(data: Json) -> Stored:
    if not isinstance(data, dict) or data.keys() != {"entries", "structure"} or not isinstance(data["entries"], list):
        raise ValueError("not a description of a state")
    entries = tuple(header.entry_from_json(item) for item in data["entries"])
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("two entries of one name")
    return Stored(structure.from_json(data["structure"]), entries)


def _read_tensors(
    files: FileSystem, folder: Path, found: Manifest, stored: Stored, targets: Iterable[memoryview]
) -> None:
    """Read the arrays into ``targets``, one after another, and check every byte of the file."""
    path, entry = folder / TENSORS, found.files[TENSORS]
    expected = header.encode(stored.entries)
    if len(expected) + sum(item.size for item in stored.entries) != entry.size:
        raise CheckpointError(f"{path} is damaged: the length in the manifest does not fit the state")
    hasher, start = hashlib.sha256(), bytearray(len(expected))
    with open_file(files, path) as handle:
        size = files.size(handle)
        if size != entry.size:
            raise CheckpointError(f"{path} is damaged: it has {size} bytes instead of {entry.size}")
        for target in itertools.chain([memoryview(start)], targets):
            for first in range(0, len(target), CHUNK):
                piece = target[first : first + CHUNK]
                read_exactly(files, handle, piece, path)
                hasher.update(piece)
    if start != expected or hasher.hexdigest() != entry.sha256:
        raise CheckpointError(f"{path} is damaged: its digest differs from the manifest's")


def _table(path: Path, mismatches: list[structure.Mismatch]) -> str:
    rows = [("path", "saved", "expected")]
    rows += [(row.path or "(root)", row.saved, row.expected) for row in mismatches[:_ROWS_SHOWN]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows]
    if len(mismatches) > _ROWS_SHOWN:
        lines.append(f"  ... and {len(mismatches) - _ROWS_SHOWN} more")
    return (
        f"{path} holds another state than the one to be resumed ({len(mismatches)} differences); "
        "build the model, the optimiser and the state as they were when it was saved:\n" + "\n".join(lines)
    )
