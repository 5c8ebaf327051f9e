"""The storage that the load planner of ``torch.distributed.checkpoint`` reads shard files from.

Importing this takes half a second; it is imported where there are shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, StorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.futures import Future

from .leaves import DTYPES, Piece, ShardedSpec

if TYPE_CHECKING:
    from .assembly import Assembly


def metadata_of(specs: Mapping[str, ShardedSpec]) -> Metadata:
    """What the planner has to know of leaves by name. There are tensors only: nothing that it would unpickle."""
    return Metadata(
        {
            name: TensorStorageMetadata(
                TensorProperties(dtype=DTYPES[spec.dtype]),
                torch.Size(spec.shape),
                [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in spec.pieces],
            )
            for name, spec in specs.items()
        }
    )


class ShardReader(StorageReader):
    """Reads the shard files that a plan needs, one after another, each once.

    Attributes:
        read: the numbers of the files that were read, and so checked.
    """

    def __init__(self, assembly: Assembly, specs: Mapping[str, ShardedSpec]) -> None:
        self._assembly = assembly
        self._specs = specs
        self.read: set[int] = set()

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to do: one object reads one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See `metadata_of`."""
        return metadata_of(self._specs)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the parts of pieces that the plan lists to where the planner wants them."""
        places = {(name, piece.offsets): piece for name, spec in self._specs.items() for piece in spec.pieces}
        by_file: dict[int, list[tuple[ReadItem, Piece]]] = {}
        for item in plan.items:
            offset = item.storage_index.offset
            piece = places[item.storage_index.fqn, () if offset is None else tuple(offset)]
            by_file.setdefault(piece.file, []).append((item, piece))
        for number, items in sorted(by_file.items()):
            memory = self._assembly.read(number, {piece.entry for _, piece in items})
            self.read.add(number)
            for item, piece in items:
                dtype = DTYPES[self._specs[item.storage_index.fqn].dtype]
                _copy(memory[piece.entry].view(dtype).view(piece.sizes), item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether a path could be a checkpoint: it is not asked here."""
        return True


def _copy(piece: torch.Tensor, item: ReadItem, planner: LoadPlanner) -> None:
    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        piece = piece.narrow(dim, start, length)
    with torch.no_grad():
        target = planner.resolve_tensor(item).detach()
        target.copy_(piece)
        planner.commit_tensor(item, target)
