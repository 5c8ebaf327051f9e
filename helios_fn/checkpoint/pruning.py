"""Removing checkpoints: first decide, then rename, and only then delete.

A folder gets a name that no checkpoint can have before the first of its files goes, and that name is
durable by then. So whatever interrupts the work, what bears the name of a checkpoint is whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..config import Retention
from . import manifest
from .files import FileSystem, remove_folder
from .listing import Checkpoint, Damaged, problem, scan
from .manifest import Manifest
from .names import REMOVED
from .retention import NEWEST, entry_of, reasons

_log = logging.getLogger("helios_fn")


class Pruner:
    """Prunes the checkpoints of one run in ``folder``, and remembers which of them need not be read again."""

    def __init__(self, files: FileSystem, folder: Path, run: str) -> None:
        self._files, self._folder, self._run = files, folder, run
        self._sound: dict[Path, Manifest] = {}
        self._told: set[str] = set()

    def trust(self, checkpoint: Checkpoint) -> None:
        """Remember that a checkpoint was just written, or read in full."""
        self._sound[checkpoint.path] = checkpoint.manifest

    def prune(self, policy: Retention) -> list[Path]:
        """Remove what ``policy`` does not keep, and return where it was.

        Raises:
            OSError: the disk refused.
        """
        entries = scan(self._files, self._folder, self._run)[0]
        decided, self._sound = plan(self._files, entries, policy, self._sound)
        for item in decided.spared:
            if item.reason not in self._told:
                self._told.add(item.reason)
                _log.warning("not removed: %s", item.reason)
        perform(self._files, self._folder, decided.removed)
        for entry in decided.removed:
            _log.info("removed %s", entry.path)
        return [entry.path for entry in decided.removed]


class Plan(NamedTuple):
    """What pruning would do.

    Attributes:
        kept: the checkpoints that stay, newest first, and why.
        removed: the checkpoints that go, oldest first.
        spared: the folders that are not touched and count for nothing, and why.
    """

    kept: tuple[tuple[Checkpoint, str], ...]
    removed: tuple[Checkpoint, ...]
    spared: tuple[Damaged, ...]


def plan(
    files: FileSystem, entries: Sequence[Checkpoint], policy: Retention, sound: Mapping[Path, Manifest]
) -> tuple[Plan, dict[Path, Manifest]]:
    """Decide about checkpoints, given newest first.

    The newest ones are read in full until two are found valid, for these are what the rest can be
    given up for. Of those that ``sound`` knows by their manifests (they were read or written in full
    before), and of all older ones, only the manifest and the lengths of the files are looked at. Also
    returns those two, to be known next time.
    """
    counted: list[Checkpoint] = []
    spared: list[Damaged] = []
    valid: dict[Path, Manifest] = {}
    for entry in entries:
        in_full = len(valid) < NEWEST
        flaw = problem(files, entry, in_full=in_full and sound.get(entry.path) != entry.manifest)
        if flaw is not None:
            spared.append(Damaged(entry.path, flaw))
            continue
        counted.append(entry)
        if in_full:
            valid[entry.path] = entry.manifest
    why = reasons([entry_of(entry) for entry in counted], policy)
    kept: list[tuple[Checkpoint, str]] = []
    removed: list[Checkpoint] = []
    for entry in counted:
        ours = {manifest.FILE_NAME, *entry.manifest.files}
        foreign = sorted(set(files.listdir(entry.path)) - ours) if not why[entry.path.name] else []
        if foreign:
            spared.append(Damaged(entry.path, f"{entry.path} holds {foreign[0]}, which no checkpoint does: move it"))
        elif why[entry.path.name]:
            kept.append((entry, ", ".join(why[entry.path.name])))
        else:
            removed.append(entry)
    return Plan(tuple(kept), tuple(reversed(removed)), tuple(spared)), valid


def perform(files: FileSystem, folder: Path, removed: Sequence[Checkpoint]) -> None:
    """Remove checkpoints from ``folder``, durably and each as a whole."""
    sweep(files, folder)
    if not removed:
        return
    files.sync_folder(folder)  # a newer one may have got its name just before its process was killed
    for entry in removed:
        files.rename(entry.path, folder / (REMOVED + entry.path.name))
    sweep(files, folder)


def sweep(files: FileSystem, folder: Path) -> None:
    """Delete what has been renamed to be removed, by whatever process."""
    names = [name for name in files.listdir(folder) if name.startswith(REMOVED)]
    if names:
        files.sync_folder(folder)  # or the old name could come back, after a loss of power, with half of the files
    for name in names:
        remove_folder(files, folder / name)
