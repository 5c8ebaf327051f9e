"""The checkpoints of a run whose state is sharded: every process writes its pieces, rank 0 all else."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from .. import tree as trees
from ..dtensors import any_sharded, is_sharded, local
from ..errors import CheckpointError, ResumeRefused, StateOverwritten
from ..types import Tree
from . import format, manifest
from .files import OS, FileSystem, disk_errors, remove_folder
from .listing import Checkpoint
from .manifest import Manifest
from .names import UNFINISHED
from .output import write_file
from .pending import Pending
from .saveable import check_saveable
from .sharded_snapshot import sharded_snapshot
from .snapshot import STATE, TENSORS
from .store import Store

if TYPE_CHECKING:
    from .sharded_writer import Shards

T = TypeVar("T")


class PendingShards(NamedTuple):
    """A sharded checkpoint that has been checked and is yet to be written; it keeps the state's tensors alive."""

    parts: Pending  # the same with the parts of this process
    state: Tree


class ShardedStore:
    """A `Store` of states with sharded leaves (DTensors), for all processes of a group together.

    A checkpoint is one folder, as that of a `Store`, with a file more for each process; every process must see the same
    file system. It comes back for any number of processes, and for none: as sharded as the template that it is loaded
    into. It is complete and durable, or not there: rank 0 writes the manifest when all pieces are on disk. If one
    process fails, the save fails on all of them, and every earlier checkpoint is as it was.

    Methods without a remark to the contrary are collective: all processes call them, in the same order.

    Args:
        root: the folder of the run, as of a `Store`.
        name: the name of the run.
        group: the processes, by default all. Their messages are on the CPU, so it needs gloo.
        files: the file system, replaced in tests.

    Attributes:
        store: the `Store` of the same folder. Only rank 0 may lock it, or have it move and remove checkpoints.

    Raises:
        ValueError: ``name`` cannot name files.
        CheckpointError: nothing can be written to ``root``.
    """

    def __init__(self, root: Path, name: str, *, group: Any = None, files: FileSystem = OS) -> None:
        self._group, self._files = group, files
        self._rank, self._world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        self.store: Store = self._agreed(lambda: Store(root, name, files=files, writes=self._rank == 0))

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, see `Store.newest`; rank 0 looks for it, and verifies it."""
        found = self._agreed(lambda: self.store.newest() if self._rank == 0 else None)
        paths = [None if found is None else found.path]
        torch.distributed.broadcast_object_list(paths, group_src=0, group=self._group)
        if self._rank == 0 or paths[0] is None:
            return found
        return Checkpoint(paths[0], format.read_manifest(paths[0], files=self._files))

    def prepare(
        self,
        state: Tree,
        *,
        epoch: int,
        iteration: int,
        micro_step: int,
        record: Mapping[str, Any],
        metadata: str = "",
        free: Collection[str] = (),
    ) -> PendingShards:
        """Check all that can be wrong with a checkpoint but the disk, see `Store.prepare`. Not collective.

        Of leaves that are not sharded and of the arguments, those of rank 0 are written.

        Raises:
            TypeError, ValueError: as `Store.prepare` does; no leaf is sharded, or one only holds a part of a sum.
        """
        leaves = trees.leaves(state)
        if not any_sharded(leaves):
            raise ValueError("no leaf of the state is sharded: save it with a Store, in one process")
        check_saveable(state, free=free, sharded=True)
        parts = self.store.prepare(
            trees.map(local, state),
            epoch=epoch,
            iteration=iteration,
            micro_step=micro_step,
            record=record,
            metadata=metadata,
            free=free,
        )
        return PendingShards(parts, state)

    def commit(self, pending: PendingShards) -> Path:
        """Write what `prepare` returned, durably and all or nothing, and return the checkpoint's folder.

        If the folder holds the same already, it stays; if it holds anything else, that is set aside.

        Raises:
            CheckpointError: a disk refused, or the state has changed since `prepare`; the message names the rank.
        """
        import torch.distributed.checkpoint as dcp

        from .sharded_writer import ShardWriter

        unfinished = pending.parts.folder.with_name(UNFINISHED + pending.parts.folder.name)
        writer = ShardWriter(
            self._files,
            unfinished,
            self._rank,
            self._world,
            written=pending.parts.untouched.check,
            complete=functools.partial(self._complete, pending, unfinished),
        )
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        shards = {path: leaf for path, leaf in trees.items(pending.state) if is_sharded(leaf)}
        try:
            dcp.save(shards, storage_writer=writer, planner=planner, process_group=self._group)
        except BaseException as error:
            if self._rank == 0:
                with contextlib.suppress(OSError):
                    remove_folder(self._files, unfinished)
            failures = getattr(error, "failures", None)
            if not failures:
                raise
            raise _failure(pending.parts.folder, failures) from error
        return pending.parts.folder

    def save(self, state: Tree, **arguments: Any) -> Path:
        """`commit` of what `prepare` returns: see there for the arguments and the errors."""
        return self.commit(self.prepare(state, **arguments))

    def load(self, checkpoint: Checkpoint, like: Tree, *, free: Collection[str] = ()) -> Tree:
        """Load a checkpoint into the structure of ``like``, as sharded as its leaves are; see `Store.load`.

        Each process reads, and checks, the files that hold something for it; if one of them fails, all do.
        """
        return self._agreed(lambda: self.store.load(checkpoint, like, free=free))

    def _complete(self, pending: PendingShards, unfinished: Path, shards: Shards) -> None:
        """In rank 0, when the pieces of all processes are on disk: write the rest, and give it its name."""
        files, parts = self._files, pending.parts
        missing = sorted(shards.holds.keys() - set(files.listdir(unfinished)))
        if missing:
            raise CheckpointError(
                f"{unfinished} has no {missing[0]}, which another process has written: all of them must see one and "
                "the same folder"
            )
        content = sharded_snapshot(pending.state, shards.files, shards.specs)
        written = {TENSORS: write_file(files, unfinished / TENSORS, content.tensor_chunks())}
        written[STATE] = write_file(files, unfinished / STATE, [content.state])
        complete = parts.description._replace(files={**written, **shards.holds})
        parts.untouched.check()
        write_file(files, unfinished / manifest.FILE_NAME, [manifest.encode(complete)])
        files.sync_folder(unfinished)
        if self._holds(parts.folder, complete):
            remove_folder(files, unfinished)
            files.sync_folder(parts.folder.parent)
        else:
            self.store.publish(unfinished, parts.folder, complete)

    def _holds(self, folder: Path, complete: Manifest) -> bool:
        """Whether a folder is a valid checkpoint of exactly this already."""
        if folder.name not in self._files.listdir(folder.parent):
            return False
        try:
            found = format.verify(folder, files=self._files)
        except CheckpointError:
            return False
        return found._replace(versions={}) == complete._replace(versions={})

    def _agreed(self, call: Callable[[], T]) -> T:
        """What ``call`` returns, if it returns in every process; else all of them raise."""
        mine: CheckpointError | ValueError | None = None
        try:
            with disk_errors("use the checkpoints"):
                result = call()
        except (CheckpointError, ValueError) as error:
            mine = error
        everybody: list[Any] = [None] * self._world
        told = None if mine is None else (isinstance(mine, ResumeRefused), str(mine))
        torch.distributed.all_gather_object(everybody, told, group=self._group)
        if mine is not None:
            raise mine
        for rank, other in enumerate(everybody):
            if other is not None:
                raise (ResumeRefused if other[0] else CheckpointError)(f"rank {rank}: {other[1]}")
        return result


def _failure(folder: Path, failures: Mapping[int, tuple[BaseException, Any]]) -> CheckpointError:
    """What went wrong in some ranks, as one error that all of them raise."""
    reasons = [f"rank {rank}: {type(error).__name__}: {error}" for rank, (error, _) in sorted(failures.items())]
    overwritten = any(isinstance(error, StateOverwritten) for error, _ in failures.values())
    return (StateOverwritten if overwritten else CheckpointError)(f"cannot save {folder}: {'; '.join(reasons)}")
