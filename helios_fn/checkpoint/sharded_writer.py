"""The storage that ``torch.distributed.checkpoint`` writes the pieces of sharded tensors to.

Which process writes which piece, so that each is written once, is decided by its save planner. Its metadata, which its
own storages pickle, end up in ``state.json``: there are tensors only, and nothing is pickled to the disk.

Importing this takes half a second; it is imported where there are shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint import Metadata, SavePlan, SavePlanner, StorageWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from . import header, storages
from .checksum import FileEntry
from .files import FileSystem, remove_folder
from .leaves import DTYPE_NAMES, Piece, ShardedSpec
from .output import write_file
from .shards import ShardFile, shard_file_name
from .snapshot import entry_name


class Written(NamedTuple):
    """What a process tells of a piece that it has written: where it is, and what the whole file holds."""

    file: str
    number: int
    entry: header.Entry
    holds: FileEntry


class Shards(NamedTuple):
    """What all processes have written: the files, what these hold, and for each path where its pieces are."""

    files: tuple[ShardFile, ...]
    holds: dict[str, FileEntry]
    specs: dict[str, ShardedSpec]


class ShardWriter(StorageWriter):
    """Writes one checkpoint: each process its pieces, rank 0 the rest.

    Args:
        files: the file system.
        folder: where to, made by rank 0.
        rank: of this process.
        world: the number of processes.
        written: called in each process when its pieces are durable.
        complete: called in rank 0 when all pieces are.
    """

    def __init__(
        self,
        files: FileSystem,
        folder: Path,
        rank: int,
        world: int,
        *,
        written: Callable[[], None],
        complete: Callable[[Shards], None],
    ) -> None:
        self._files, self._folder = files, folder
        self._file = shard_file_name(rank, world)
        self._written, self._complete = written, complete

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to do: one object writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan without the pieces that have no elements, as some processes' of a short tensor."""
        return dataclasses.replace(plan, items=[item for item in plan.items if _tensor(item).chunk.sizes.numel()])

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are; makes the folder, before anybody writes into it."""
        if self._folder.name in self._files.listdir(self._folder.parent):  # left by a save that failed
            remove_folder(self._files, self._folder)
        self._files.mkdir(self._folder)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's pieces into one file, and make it durable."""
        # Wide elements first, so that without gaps each piece begins at a multiple of its element size.
        items = sorted(plan.items, key=lambda item: -_tensor(item).properties.dtype.itemsize)
        entries = [_entry(item) for item in items]
        results = []
        if items:
            start = header.encode(entries)
            size = len(start) + sum(entry.size for entry in entries)
            pieces = _content(start, items, planner)
            holds = write_file(self._files, self._folder / self._file, pieces, size=size)
            for number, (item, entry) in enumerate(zip(items, entries, strict=True)):
                results.append(WriteResult(item.index, entry.size, Written(self._file, number, entry, holds)))
        self._written()
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Complete the checkpoint, of which all pieces are durable."""
        self._complete(_collect(metadata, results))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether a path could be a checkpoint: it is not asked here."""
        return True


def _tensor(item: WriteItem) -> Any:
    assert item.tensor_data is not None, "only tensors are handed to the planner"
    return item.tensor_data


def _entry(item: WriteItem) -> header.Entry:
    """The entry of a piece, which goes by the path of the leaf and the element that it begins at."""
    data = _tensor(item)
    name = f"{entry_name(item.index.fqn)}@{','.join(map(str, data.chunk.offsets))}"
    dtype = header.dtype_name(str(data.properties.dtype).removeprefix("torch."))
    if dtype is not None:
        return header.Entry(name, dtype, tuple(data.chunk.sizes))
    return header.Entry(name, "U8", (data.chunk.sizes.numel() * data.properties.dtype.itemsize,))


def _content(start: bytes, items: Sequence[WriteItem], planner: SavePlanner) -> Iterator[bytes | memoryview]:
    yield start
    for item in items:
        piece = planner.resolve_data(item)
        assert isinstance(piece, torch.Tensor), "only tensors are handed to the planner"
        data = piece.detach().cpu().contiguous()
        yield storages.as_bytes(data.as_strided((data.numel(),), (1,)).view(torch.uint8))


def _collect(metadata: Metadata, results: list[list[WriteResult]]) -> Shards:
    written = {(one.index.fqn, tuple(one.index.offset or ())): one.storage_data for each in results for one in each}
    holds = {place.file: place.holds for place in written.values()}
    names = sorted(holds)
    by_file: dict[str, list[tuple[int, header.Entry]]] = {name: [] for name in names}
    for place in written.values():
        by_file[place.file].append((place.number, place.entry))
    files = tuple(ShardFile(name, tuple(entry for _, entry in sorted(by_file[name]))) for name in names)
    specs = {}
    for path, found in metadata.state_dict_metadata.items():
        pieces = []
        for chunk in found.chunks:  # type: ignore[union-attr]
            place = written[path, tuple(chunk.offsets)]
            pieces.append(Piece(names.index(place.file), place.number, tuple(chunk.offsets), tuple(chunk.sizes)))
        dtype = DTYPE_NAMES[found.properties.dtype]  # type: ignore[union-attr]
        specs[path] = ShardedSpec(dtype, tuple(found.size), tuple(pieces))  # type: ignore[union-attr]
    return Shards(files, holds, specs)
