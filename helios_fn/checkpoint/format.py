"""One checkpoint folder: three files, the last of which proves the others.

Here damage is a `CheckpointError`, and trouble with the disk or the machine is an ``OSError``.

``tensors.safetensors`` holds ranges of bytes, ``state.json`` the structure, the scalars and where each
tensor lies in those ranges, ``manifest.json`` the lengths and checksums of both. A sharded checkpoint has a file
``shards-<rank>-of-<world>.safetensors`` more for each process, with its pieces of the sharded tensors. Other files in
the folder are never read. Nothing in a folder names code, or a class to be constructed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..errors import CheckpointError, ResumeRefused
from ..types import Json, Tree
from . import arrays, canonical, header, manifest, storages, structure
from .assembly import Assembly, sharded_as
from .checksum import entry_of
from .files import OS, THREADED, FileSystem, read_file
from .leaves import Leaf, Scalar, ShardedSpec, TensorSpec
from .manifest import Manifest
from .output import write_file
from .shards import ShardFile, check_pieces, is_shard_file, shard_files_from_json
from .snapshot import MAX_STATE_SIZE, STATE, TENSORS, Snapshot

_ROWS_SHOWN = 20


class Stored(NamedTuple):
    """What ``state.json`` says: the structure, the entries of the tensor file in order, and the shard files."""

    structure: structure.Node
    entries: tuple[header.Entry, ...]
    shards: tuple[ShardFile, ...] = ()


def write(
    files: FileSystem,
    folder: Path,
    content: Snapshot,
    description: Manifest,
    *,
    background: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a checkpoint into a new folder, durably but for the folder's own name.

    ``description`` is completed with the files' lengths and checksums, and returned. In the ``background`` of
    other work one thread does it all. ``check`` is called when all tensors have been read for the last time: if it
    raises, there is no manifest that would prove them.

    Raises:
        OSError: the disk refused.
    """
    contents = {TENSORS: content.tensor_chunks(), STATE: [content.state]}
    threaded = content.size >= THREADED and not background
    sizes = {TENSORS: content.size, STATE: len(content.state)}
    return write_files(files, folder, contents, description, sizes=sizes, threaded=threaded, check=check)


def write_files(
    files: FileSystem,
    folder: Path,
    contents: Mapping[str, Iterable[bytes | memoryview]],
    description: Manifest,
    *,
    sizes: Mapping[str, int] = MappingProxyType({}),
    threaded: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Manifest:
    """The same for files given piece by piece, of ``sizes`` where they are known; ``threaded``: see `write_file`."""
    files.mkdir(folder)
    written = {
        name: write_file(files, folder / name, pieces, size=sizes.get(name), threaded=threaded)
        for name, pieces in contents.items()
    }
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
        found = manifest.decode(data, folder)
    except ResumeRefused:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if {name for name in found.files if not is_shard_file(name)} != {TENSORS, STATE}:
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
    arrays.read(files, path / TENSORS, found.files[TENSORS], stored.entries, None)
    for shard in stored.shards:
        arrays.read(files, path / shard.name, found.files[shard.name], shard.entries, None)
    return found


def load(path: Path, found: Manifest, like: Tree, *, free: Collection[str] = (), files: FileSystem = OS) -> Tree:
    """Load a checkpoint whose manifest is known into the structure of ``like``, checking each byte.

    Tensors come back in fresh memory on the devices of the template's leaves; on the CPU where the
    template has none (below ``free`` paths) or holds no values (on the meta device). They come back as sharded as the
    template's leaves are, however they were when they were saved; no other process takes part in this.

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

    def targets() -> list[memoryview]:  # called when the lengths have been checked
        memory.extend(storages.allocate(entry.size) for entry in stored.entries)
        return [storages.as_bytes(data) for data in memory]

    arrays.read(files, path / TENSORS, found.files[TENSORS], stored.entries, targets)
    assembly = Assembly(files, path, found.files, stored.shards)
    try:
        tree = rebuilt(stored.structure, like, memory, free=free, assembly=assembly)
        assembly.fill()
        return tree
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def rebuilt(
    saved: structure.Node,
    like: Tree,
    memory: list[torch.Tensor],
    *,
    free: Collection[str] = (),
    assembly: Assembly | None = None,
) -> Tree:
    """The tree that was described, in the containers of ``like``, its tensors in ``memory`` or copied to their devices.

    Leaves that are stored in pieces get memory that ``assembly`` is to fill.

    Raises:
        ValueError: the description is damaged, or has such leaves and there is no ``assembly``.
    """
    place = storages.Placer(memory)

    def make(leaf: Leaf, template: Any) -> Any:
        if isinstance(leaf, Scalar):
            return leaf.value
        known = isinstance(template, torch.Tensor) and not template.is_meta
        device = template.device if known else torch.device("cpu")
        if isinstance(leaf, ShardedSpec):
            if assembly is None:
                raise ValueError("a tensor that is stored in pieces has come without them")
            return assembly.target(leaf, template, device)
        return sharded_as(place(leaf, device), template)  # type: ignore[arg-type]

    with torch.no_grad():
        return structure.rebuild(saved, like, make, free=free)


def read_structure(path: Path, found: Manifest, *, files: FileSystem = OS) -> structure.Node:
    """What a checkpoint whose manifest is known holds, in words; the tensors' bytes are not looked at.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    return _read_state(files, path, found).structure


def read_leaves(
    path: Path, found: Manifest, places: Mapping[str, torch.device], *, files: FileSystem = OS
) -> dict[str, Any]:
    """The leaves at the paths in ``places``, without a template, on these devices, checking each byte of the whole.

    Tensors come back in fresh memory, sharing it as they did; what belongs to none of them takes up none.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    stored = _read_state(files, path, found)
    leaves = {name: leaf for name, leaf in structure.leaf_items(stored.structure) if name in places}
    needed = {leaf.storage for leaf in leaves.values() if isinstance(leaf, TensorSpec)}
    memory: list[torch.Tensor] = []

    def targets() -> list[arrays.Target]:
        memory.extend(storages.allocate(entry.size if n in needed else 0) for n, entry in enumerate(stored.entries))
        return [storages.as_bytes(memory[n]) if n in needed else entry.size for n, entry in enumerate(stored.entries)]

    arrays.read(files, path / TENSORS, found.files[TENSORS], stored.entries, targets)
    place, assembly = storages.Placer(memory), Assembly(files, path, found.files, stored.shards)

    def make(leaf: Leaf, device: torch.device) -> Any:
        if isinstance(leaf, ShardedSpec):
            if assembly is None:
                raise ValueError("a tensor that is stored in pieces has come without them")
            return assembly.target(leaf, None, device)
        return place(leaf, device) if isinstance(leaf, TensorSpec) else leaf.value  # type: ignore[union-attr]

    values = {name: make(leaf, places[name]) for name, leaf in leaves.items()}
    assembly.fill(check_all=True)
    return values


def _read_state(files: FileSystem, folder: Path, found: Manifest) -> Stored:
    path, entry = folder / STATE, found.files[STATE]
    data = read_file(files, path, min(entry.size, MAX_STATE_SIZE))
    arrays.report(path, entry, entry_of(data))
    try:
        stored = stored_from_json(canonical.parse(data))
        specs = [leaf for leaf in structure.leaf_specs(stored.structure) if isinstance(leaf, TensorSpec)]
        storages.check(specs, [item.size for item in stored.entries])
        check_pieces(structure.leaf_specs(stored.structure), stored.shards, found.files)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return stored


def stored_from_json(data: Json) -> Stored:
    """What the JSON of a state says.

    Raises:
        ValueError: it is damaged.
    """
    fields = data.keys() - {"shards"} if isinstance(data, dict) else ()
    if not isinstance(data, dict) or fields != {"entries", "structure"} or not isinstance(data["entries"], list):
        raise ValueError("not a description of a state")
    entries = tuple(header.entry_from_json(item) for item in data["entries"])
    if len({entry.name for entry in entries}) != len(entries):
        raise ValueError("two entries of one name")
    shards = shard_files_from_json(data["shards"]) if "shards" in data else ()
    return Stored(structure.from_json(data["structure"]), entries, shards)


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
