"""The checkpoints of a run: found, chosen, saved, loaded, and moved aside, never deleted."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..types import Tree
from . import format
from .files import OS, FileSystem, disk_errors, make_folders, remove_folder
from .listing import Checkpoint, Damaged, first_valid, scan
from .lock import Lock
from .manifest import Manifest, encode, versions
from .names import UNFINISHED, check_name, folder_name
from .saveable import check_saveable
from .untouched import Untouched, wait_for_devices
from .writer import Prepared

_log = logging.getLogger("helios_fn")


class Store:
    """The checkpoints of one run under ``root``, in ``<root>/checkpoints``.

    Several runs may share a root under different names, one at a time: hold `lock` while working on
    it. Checkpoints are told apart by their manifests, never by folder names or clocks. Nothing is
    overwritten or deleted: what is in the way moves to ``<root>/damaged``, and what an older resume
    leaves behind to ``<root>/superseded``. After any failed or interrupted call, every checkpoint
    completed before is still there.

    Args:
        root: the folder of the run; made if missing.
        name: the name of the run.
        files: the file system, replaced in tests.

    Attributes:
        root: the absolute path of the root, links resolved.
        folder: where the checkpoints are.
        name: the name of the run.

    Raises:
        ValueError: ``name`` cannot name files.
        CheckpointError: nothing can be written to ``root``.
    """

    def __init__(self, root: Path, name: str, *, files: FileSystem = OS) -> None:
        check_name("name", name)
        self.root = Path(root).resolve()
        self.folder = self.root / "checkpoints"
        self.name = name
        self._files = files
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
        folder = Path(path).resolve()
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
        """Write a checkpoint, durably and all or nothing, and return its folder: `prepare`, then ``write``.

        The folder is ``<name>_epoch_<epoch>_iter_<micro_step>[_<metadata>]``. If it holds the same
        already, nothing is written; if it holds anything else, that is set aside.

        Args:
            state: any tree that `check_saveable` accepts; it must not change during the call.
            epoch: completed epochs.
            iteration: completed calls of ``step``; the newest checkpoint has the highest.
            micro_step: consumed micro-batches.
            record: JSON values to keep in the manifest.
            metadata: the last part of the name: letters, digits, ``_``, ``.`` and ``-``.
            free: paths that will be loaded without a template, see `check_saveable`.

        Raises:
            TypeError: naming the leaves that cannot be saved exactly; or ``record`` is not JSON.
            ValueError: ``metadata`` cannot name files, or a count is negative.
            CheckpointError: the disk refused, or the state changed. All earlier checkpoints are as they were.
        """
        prepared = self.prepare(
            state, epoch=epoch, iteration=iteration, micro_step=micro_step, record=record, metadata=metadata, free=free
        )
        prepared.write()
        return prepared.path

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
    ) -> Prepared:
        """The part of `save` that needs no disk: refuse now what it would refuse, and remember what to write.

        Takes milliseconds for a state of any size, since no tensor is read; accelerators finish what they have
        been told to compute. ``write`` may then be called in another thread; the state must not change before it has
        returned, and nobody else may use the store.
        """
        if metadata:
            check_name("metadata", metadata)
        check_saveable(state, free=free)
        description = Manifest(self.name, epoch, iteration, micro_step, metadata, {}, versions(), dict(record))
        encode(description)  # to refuse a bad record or count before anything is written
        folder = self.folder / folder_name(self.name, epoch, micro_step, metadata)
        untouched = Untouched(state, folder)
        wait_for_devices(state)

        def write() -> None:
            content = format.snapshot(state)
            with disk_errors(f"save {folder}"):
                if self._holds(folder, description, content):
                    untouched.check()
                    self._files.sync_folder(self.folder)
                else:
                    self._write(folder, description, content, untouched.check)

        return Prepared(folder, write)

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

    def lock(self) -> Lock:
        """Keep other processes, and other stores in this one, out of the root until the lock is released.

        Then finish what a killed process left: a checkpoint that it had written completely becomes
        one, an incomplete one is removed.

        Raises:
            RootLocked: somebody else holds the lock; the message says who.
        """
        lock = Lock(self.root / "lock")
        try:
            with disk_errors(f"clean {self.folder}"):
                for name in self._files.listdir(self.folder):
                    if name.startswith(UNFINISHED):
                        self._recover(name)
        except BaseException:
            lock.release()
            raise
        return lock

    # Below, trouble with the disk is still an OSError: the public methods above translate it.

    def _holds(self, folder: Path, description: Manifest, content: format.Snapshot) -> bool:
        """Whether ``folder`` is a valid checkpoint of exactly this."""
        if folder.name not in self._files.listdir(self.folder):
            return False
        try:
            found = format.read_manifest(folder, files=self._files)
            wanted = description._replace(files=found.files, versions=found.versions)
            if encode(wanted) != encode(found) or content.files() != found.files:
                return False
            format.verify(folder, files=self._files)
        except CheckpointError:
            return False
        return True

    def _write(self, folder: Path, description: Manifest, content: format.Snapshot, check: Callable[[], None]) -> None:
        unfinished = folder.with_name(UNFINISHED + folder.name)
        taken = self._files.listdir(self.folder)
        if unfinished.name in taken:
            remove_folder(self._files, unfinished)
        try:
            format.write(self._files, unfinished, content, description, check=check)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_folder(self._files, unfinished)
            raise
        # From here on the new one is complete: should the next calls fail, `lock` finishes the work.
        if folder.name in taken:
            self._set_aside(folder.name, f"{folder} is damaged, or holds another state")
        self._files.rename(unfinished, folder)
        self._files.sync_folder(self.folder)

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

    def _recover(self, name: str) -> None:
        unfinished, folder = self.folder / name, self.folder / name.removeprefix(UNFINISHED)
        try:
            found = format.verify(unfinished, files=self._files)
            intended = folder_name(found.run, found.epoch, found.micro_step, found.metadata)
            complete = intended == folder.name and folder.name not in self._files.listdir(self.folder)
        except CheckpointError:
            complete = False
        if complete:
            self._files.rename(unfinished, folder)
            _log.warning("%s had been written completely when its process ended; it is kept", folder)
        else:
            remove_folder(self._files, unfinished)
        self._files.sync_folder(self.folder)


def verify(path: Path | str, *, files: FileSystem = OS) -> Manifest:
    """Read a whole checkpoint, check each byte of it, and return its manifest.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
        ResumeRefused: it is sound, but for other versions of helios_fn or torch.
    """
    with disk_errors(f"read {path}"):
        return format.verify(Path(path), files=files)


def _probe(files: FileSystem, folder: Path) -> None:
    """Find out now, not at the first save, whether files can be written."""
    path = folder / f".probe-{os.getpid()}"
    if path.name in files.listdir(folder):  # left by a killed process of the same number
        files.remove(path)
    handle = files.create(path)
    try:
        files.sync(handle)
    finally:
        files.close(handle)
        files.remove(path)
