"""The checkpoints of a run: found, chosen, saved, loaded, moved aside, and pruned by a policy."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import Retention
from ..errors import CheckpointError
from ..types import Tree
from . import format
from .files import OS, FileSystem, disk_errors, make_folders, remove_folder
from .leftovers import finish
from .listing import Checkpoint, Damaged, first_valid, scan
from .lock import Lock
from .manifest import Manifest, owned, versions
from .names import UNFINISHED, check_name, folder_name
from .pending import Pending, holds
from .pruning import Pruner
from .saveable import check_saveable
from .snapshot import Snapshot, Snapshots
from .untouched import Untouched

_log = logging.getLogger("helios_fn")


class Store:
    """The checkpoints of one run under ``root``, in ``<root>/checkpoints``.

    Several runs may share a root under different names, one at a time: hold `lock` while working on
    it. Checkpoints are told apart by their manifests, never by folder names or clocks. Nothing is
    overwritten, or deleted but by `prune`: what is in the way moves to ``<root>/damaged``, and what an
    older resume leaves behind to ``<root>/superseded``. After any failed or interrupted call, every checkpoint
    completed before is still there.

    Args:
        root: the folder of the run; made if missing.
        name: the name of the run.
        files: the file system, replaced in tests.
        writes: whether this process is the one that writes here; what else it may do is up to the caller.

    Attributes:
        root: the absolute path of the root, links resolved.
        folder: where the checkpoints are.
        name: the name of the run.

    Raises:
        ValueError: ``name`` cannot name files.
        CheckpointError: nothing can be written to ``root``.
    """

    def __init__(self, root: Path, name: str, *, files: FileSystem = OS, writes: bool = True) -> None:
        check_name("name", name)
        self.root = _resolved(Path(root))
        self.folder = self.root / "checkpoints"
        self.name = name
        self._files = files
        self._snapshots = Snapshots()
        self._pruner = Pruner(files, self.folder, name)
        if writes:
            with disk_errors(f"write to the root {self.root}"):
                make_folders(files, self.folder)
                _probe(files, self.folder)

    def entries(self) -> list[Checkpoint]:
        """The run's checkpoints with a sound manifest, newest first; their other files are not looked at."""
        with disk_errors(f"list {self.folder}"):
            return scan(self._files, self.folder, self.name)[0]

    def damaged(self) -> list[Damaged]:
        """The folders that bear the run's name but have no sound manifest."""
        with disk_errors(f"list {self.folder}"):
            return scan(self._files, self.folder, self.name)[1]

    def newest(self) -> Checkpoint | None:
        """The valid checkpoint with the highest iteration; ``None`` if the run has none at all.

        Damaged ones passed over on the way are set aside with a warning, once a valid one is found.

        Raises:
            CheckpointError: there are checkpoints, and none is valid. They stay where they are, so that
                the next start does not take the run for a new one.
            ResumeRefused: the newest was written for other versions of helios_fn or torch.
        """
        with disk_errors(f"look for checkpoints in {self.folder}"):
            candidates, damaged = scan(self._files, self.folder, self.name)
            valid, passed_over = first_valid(self._files, candidates)
            damaged += passed_over
            if valid is not None:
                for item in damaged:
                    self._set_aside(item.path.name, item.reason)
                self._pruner.trust(valid)
        if valid is None and damaged:
            reasons = "\n".join(f"  {item.reason}" for item in damaged)
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints of run {self.name!r} in {self.folder} is valid; repair one, "
                f"or move them away to start afresh:\n{reasons}"
            )
        return valid

    def at(self, path: Path | str) -> Checkpoint:
        """The checkpoint in the folder ``path``, inside or outside of the root, of whatever run.

        Raises:
            CheckpointError: there is none, or it is damaged; the message names the file.
        """
        folder = _resolved(Path(path))
        return Checkpoint(folder, verify(folder, files=self._files))

    def save(
        self,
        state: Tree,
        *,
        epoch: int,
        iteration: int,
        micro_step: int,
        record: Mapping[str, Any],
        metadata: str = "",
        free: Collection[str] = (),
    ) -> Path:
        """Write a checkpoint, durably and all or nothing, and return its folder.

        This is `commit` of what `prepare` returns: see there for the arguments and the errors.
        """
        return self.commit(
            self.prepare(
                state,
                epoch=epoch,
                iteration=iteration,
                micro_step=micro_step,
                record=record,
                metadata=metadata,
                free=free,
            )
        )

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
    ) -> Pending:
        """Check all that can be wrong with a checkpoint but the disk, and hold on to what `commit` will write.

        Nothing is written and no tensor copied, so this is the part of a save for the thread that trains. What follows
        from the structure alone is left to `commit`.

        Args:
            state: any tree that `check_saveable` accepts; its tensors must not change until `commit` returns.
            epoch: completed epochs.
            iteration: completed calls of ``step``; the newest checkpoint has the highest.
            micro_step: consumed micro-batches.
            record: JSON values to keep in the manifest; a change after the call does not matter.
            metadata: the last part of the name: letters, digits, ``_``, ``.`` and ``-``.
            free: paths that will be loaded without a template, see `check_saveable`.

        Raises:
            TypeError: naming the leaves that cannot be saved exactly; or ``record`` is not JSON.
            ValueError: ``metadata`` cannot name files, or a count is negative.
        """
        if metadata:
            check_name("metadata", metadata)
        check_saveable(state, free=free)
        description = Manifest(self.name, epoch, iteration, micro_step, metadata, {}, versions(), dict(record))
        # There and back, to refuse a bad record or count before anything is written, and to own the record.
        description = owned(description)
        folder = self.folder / folder_name(self.name, epoch, micro_step, metadata)
        return Pending(folder, description, Untouched(state, folder))

    def commit(self, pending: Pending, *, background: bool = False) -> Path:
        """Write what `prepare` returned, durably and all or nothing, and return the checkpoint's folder.

        The folder is ``<name>_epoch_<epoch>_iter_<micro_step>[_<metadata>]``. If it holds the same
        already, nothing is written; if it holds anything else, that is set aside. Any thread may call
        this, one at a time: in the ``background`` of training it uses no other thread, and so takes longer
        and less from the training.

        Raises:
            CheckpointError: the disk refused, or the state has changed since `prepare`. All earlier checkpoints are as
                they were.
            ValueError: there are more leaves than a checkpoint can describe.
        """
        content = self._snapshots.take(pending.untouched.tree())
        with disk_errors(f"save {pending.folder}"):
            if holds(self._files, pending, content):
                pending.untouched.check()
                self._files.sync_folder(self.folder)
            else:
                self._write(pending, content, background)
        return pending.folder

    def load(self, checkpoint: Checkpoint, like: Tree, *, free: Collection[str] = ()) -> Tree:
        """Load a checkpoint into the structure of ``like``, checking each byte again.

        Tensors come back bit for bit, with their strides, sharing memory as they did, in fresh memory
        on the devices of the template's leaves. Subtrees at the ``free`` paths (spelled as in
        `helios_fn.tree.paths`) are made from the file alone, of dicts, lists, tuples and ``None``,
        with tensors on the CPU. What containers keep outside of their leaves is the template's.

        Raises:
            ResumeRefused: structure, types, dtypes or shapes differ, with a table of where.
            CheckpointError: the checkpoint was damaged since it was found.
        """
        with disk_errors(f"load {checkpoint.path}"):
            return format.load(checkpoint.path, checkpoint.manifest, like, free=free, files=self._files)

    def supersede(self, checkpoint: Checkpoint) -> Path | None:
        """Move this run's checkpoints newer than the given one into ``<root>/superseded/<k>/checkpoints``.

        ``k`` is the next free number; returns ``<root>/superseded/<k>``, or ``None`` if there was nothing
        to move. The newest moves first, so an interrupted call leaves the run as it once was.
        """
        newer = [entry for entry in self.entries() if entry.is_newer_than(checkpoint)]
        if not newer:
            return None
        with disk_errors(f"move newer checkpoints out of {self.folder}"):
            make_folders(self._files, self.root / "superseded")
            taken = self._files.listdir(self.root / "superseded")
            number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
            target = self.root / "superseded" / str(number)
            make_folders(self._files, target / "checkpoints")
            for entry in newer:
                self._move(entry.path.name, target / "checkpoints" / entry.path.name)
        _log.warning("%d checkpoints newer than %s moved to %s", len(newer), checkpoint.path.name, target)
        return target

    def prune(self, policy: Retention) -> list[Path]:
        """Remove the checkpoints that ``policy`` does not keep, and return where they were.

        Hold the `lock`. Nothing is removed unless the two newest that stay are valid to the last byte:
        each is read in full once, those that this object wrote never. Damaged folders, those of other
        runs and those that hold anything else are left alone. An interrupted call leaves whole
        checkpoints and what the next `prune` or `lock` finishes.

        Raises:
            CheckpointError: the disk refused.
        """
        with disk_errors(f"remove old checkpoints from {self.folder}"):
            return self._pruner.prune(policy)

    def lock(self) -> Lock:
        """Keep other processes, and other stores in this one, out of the root until the lock is released.

        Then finish what a killed process left: a checkpoint that it had written completely becomes
        one, an incomplete one is removed, and so is one that was being removed. What is found from then on is
        durable.

        Raises:
            RootLocked: somebody else holds the lock; the message says who.
        """
        lock = Lock(self.root / "lock")
        try:
            with disk_errors(f"clean {self.folder}"):
                finish(self._files, self.folder)
        except BaseException:
            lock.release()
            raise
        return lock

    # Below, trouble with the disk is still an OSError: the public methods above translate it.

    def publish(self, unfinished: Path, folder: Path, complete: Manifest) -> None:
        """Give a complete, durable folder its name, and set aside what bears it; `lock` finishes what was begun."""
        if folder.name in self._files.listdir(self.folder):
            self._files.sync_folder(self.folder)  # the new one has a durable name before the old one loses its own
            self._set_aside(folder.name, f"{folder} is damaged, or holds another state")
        self._files.rename(unfinished, folder)
        self._files.sync_folder(self.folder)
        self._pruner.trust(Checkpoint(folder, complete))

    def _write(self, pending: Pending, content: Snapshot, background: bool) -> None:
        folder, description, untouched = pending
        unfinished = folder.with_name(UNFINISHED + folder.name)
        taken = self._files.listdir(self.folder)
        if unfinished.name in taken:
            remove_folder(self._files, unfinished)
        try:
            complete = format.write(
                self._files, unfinished, content, description, background=background, check=untouched.check
            )
        except BaseException:
            with contextlib.suppress(OSError):
                remove_folder(self._files, unfinished)
            raise
        self.publish(unfinished, folder, complete)

    def _set_aside(self, name: str, reason: str) -> None:
        folder = self.root / "damaged"
        make_folders(self._files, folder)
        taken = self._files.listdir(folder)
        candidates = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
        target = folder / next(candidate for candidate in candidates if candidate not in taken)
        self._move(name, target)
        _log.warning("%s; moved to %s", reason, target)

    def _move(self, name: str, target: Path) -> None:
        self._files.rename(self.folder / name, target)
        self._files.sync_folder(target.parent)
        self._files.sync_folder(self.folder)


def verify(path: Path | str, *, files: FileSystem = OS) -> Manifest:
    """Read a whole checkpoint, check each byte of it, and return its manifest.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
        ResumeRefused: it is sound, but for other versions of helios_fn or torch.
    """
    with disk_errors(f"read {path}"):
        return format.verify(Path(path), files=files)


def _resolved(path: Path) -> Path:
    """The absolute path, links resolved.

    Raises:
        CheckpointError: links lead in a circle.
    """
    with disk_errors(f"find {path}"):
        try:
            return path.resolve()
        except RuntimeError as error:  # how Python 3.11 and 3.12 call it
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _probe(files: FileSystem, folder: Path) -> None:
    """Find out now, not at the first save, whether files can be written."""
    path = folder / f"{UNFINISHED}probe-{os.getpid()}"  # should this process be killed here, `lock` removes it
    if path.name in files.listdir(folder):  # left by a killed process of the same number
        files.remove(path)
    handle = files.create(path)
    try:
        files.sync(handle)
    finally:
        files.close(handle)
        with contextlib.suppress(FileNotFoundError):  # another process has just cleaned up
            files.remove(path)
