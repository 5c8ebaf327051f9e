"""Sharded tensors put together from the pieces of a checkpoint, into whatever pieces are wanted here.

Which parts of which pieces those are is worked out by the load planner of ``torch.distributed.checkpoint``, from
metadata that come out of ``state.json``; `ShardReader` is the storage that it reads from. No process group is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..dtensors import is_sharded, local, placed
from . import arrays, storages
from .checksum import FileEntry
from .files import FileSystem
from .leaves import DTYPES, ShardedSpec
from .shards import ShardFile


class Assembly:
    """Makes empty tensors for sharded leaves, and fills all of them at once.

    Args:
        files: the file system.
        folder: the checkpoint's.
        expected: what the manifest says of the files.
        shards: the shard files and their entries.
    """

    def __init__(
        self, files: FileSystem, folder: Path, expected: Mapping[str, FileEntry], shards: Sequence[ShardFile]
    ) -> None:
        self._files, self._folder, self._expected, self._shards = files, folder, expected, shards
        self._specs: dict[str, ShardedSpec] = {}
        self._targets: dict[str, torch.Tensor] = {}

    def target(self, spec: ShardedSpec, template: Any, device: torch.device) -> torch.Tensor:
        """A tensor for a leaf, as sharded as ``template``, in fresh memory; a whole one on ``device`` if that is not.

        Its elements are there when `fill` has been called.
        """
        shape = local(template).shape if is_sharded(template) else spec.shape
        empty = torch.empty(tuple(shape), dtype=DTYPES[spec.dtype], device=device)
        target = placed(template).around(empty) if is_sharded(template) else empty
        name = str(len(self._targets))
        self._specs[name], self._targets[name] = spec, target
        return target

    def fill(self, *, check_all: bool = False) -> None:
        """Read the elements, checking each byte of the files that hold some of them, or of all.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        read: set[int] = set()
        if self._targets:
            read = self._fill()
        for number in range(len(self._shards)):
            if check_all and number not in read:
                self.read(number, None)

    def _fill(self) -> set[int]:
        # The steps of torch.distributed.checkpoint.load in one process alone, which would warn of that.
        from torch.distributed.checkpoint import DefaultLoadPlanner

        from .sharded_reader import ShardReader, metadata_of

        metadata = metadata_of(self._specs)
        reader = ShardReader(self, self._specs)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(self._targets, metadata, True)
        reader.set_up_storage_reader(metadata, True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
        reader.read_data(planner.finish_plan(plan), planner).wait()
        return reader.read

    def read(self, number: int, wanted: set[int] | None) -> dict[int, torch.Tensor]:
        """The bytes of the ``wanted`` entries of shard file ``number``; all of the file is checked.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        shard, memory = self._shards[number], dict[int, torch.Tensor]()

        def targets() -> list[arrays.Target]:
            memory.update((at, storages.allocate(shard.entries[at].size)) for at in sorted(wanted or ()))
            return [
                storages.as_bytes(memory[at]) if at in memory else entry.size for at, entry in enumerate(shard.entries)
            ]

        path, expected = self._folder / shard.name, self._expected[shard.name]
        arrays.read(self._files, path, expected, shard.entries, None if wanted is None else targets)
        return memory


def sharded_as(whole: torch.Tensor, template: Any) -> torch.Tensor:
    """A whole tensor cut as ``template`` is, the piece in memory of its own; itself if that is not sharded."""
    if not is_sharded(template):
        return whole
    from torch.distributed.tensor import distribute_tensor

    where = placed(template)
    # No source rank: every process has the whole, and nothing is sent.
    cut = distribute_tensor(whole, where.mesh, where.placements, src_data_rank=None)
    return where.around(local(cut).clone(memory_format=torch.contiguous_format))
