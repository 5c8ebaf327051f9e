"""Which folders are the checkpoints of a run, in what order, and which of them is the newest valid one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, ResumeRefused
from ..types import Json
from . import format
from .files import FileSystem, open_file
from .manifest import Manifest
from .names import is_checkpoint_name, may_belong_to

_LOGGER = logging.getLogger("helios_fn")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and what it says of itself."""

    path: Path
    manifest: Manifest

    @property
    def iteration(self) -> int:
        """Completed calls of ``step``."""
        return self.manifest.iteration

    @property
    def micro_step(self) -> int:
        """Consumed micro-batches."""
        return self.manifest.micro_step

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.manifest.epoch

    @property
    def record(self) -> dict[str, Json]:
        """What the caller of `Store.save` wanted to be kept."""
        return self.manifest.record

    def is_newer_than(self, other: Checkpoint) -> bool:
        """Whether it was written later in the run; names and clocks decide nothing."""
        return (self.iteration, self.micro_step) > (other.iteration, other.micro_step)


class Damaged(NamedTuple):
    """A folder that should be a checkpoint, and why it is not."""

    path: Path
    reason: str


def scan(files: FileSystem, folder: Path, run: str) -> tuple[list[Checkpoint], list[Damaged]]:
    """The checkpoints of a run with a sound manifest, newest first, and the folders that should have one.

    Raises:
        ResumeRefused: one was written for another version of helios_fn.
    """
    found: list[Checkpoint] = []
    damaged: list[Damaged] = []
    for name in files.listdir(folder):
        if name.startswith("."):
            continue
        path = folder / name
        try:
            checkpoint = Checkpoint(path, format.read_manifest(path, files=files))
        except CheckpointError as error:
            if may_belong_to(run, name):  # without a manifest, the name is all there is to tell the run
                if isinstance(error, ResumeRefused):
                    raise
                damaged.append(Damaged(path, str(error)))
            continue
        if checkpoint.manifest.run == run:
            found.append(checkpoint)
    # The name decides nothing but the order of two checkpoints of one moment.
    found.sort(key=lambda entry: (entry.iteration, entry.micro_step, entry.path.name), reverse=True)
    return found, damaged


def problem(files: FileSystem, entry: Checkpoint, *, in_full: bool) -> str | None:
    """Why a checkpoint with a sound manifest cannot be relied on, by its bytes or by its files' lengths alone."""
    try:
        if in_full:
            format.verify(entry.path, files=files)
            return None
        for name, expected in entry.manifest.files.items():
            with open_file(files, entry.path / name) as handle:
                size = files.size(handle)
            if size != expected.size:
                return f"{entry.path / name} is damaged: it has {size} bytes instead of {expected.size}"
    except CheckpointError as error:
        return str(error)
    return None


def survey(files: FileSystem, folder: Path) -> Iterator[tuple[Path, Checkpoint | CheckpointError]]:
    """The folders that are checkpoints of whatever run, or bear the name of one, with what is wrong with those."""
    for name in files.listdir(folder):
        path = folder / name
        if name.startswith("."):
            continue
        try:
            yield path, Checkpoint(path, format.read_manifest(path, files=files))
        except CheckpointError as error:
            if is_checkpoint_name(name):
                yield path, error


def first_valid(files: FileSystem, candidates: Iterable[Checkpoint]) -> tuple[Checkpoint | None, list[Damaged]]:
    """The first of ``candidates`` that is valid to the last byte, and those before it.

    Raises:
        ResumeRefused: one before it is sound, but for other versions of helios_fn or torch.
    """
    damaged: list[Damaged] = []
    for candidate in candidates:
        try:
            return Checkpoint(candidate.path, format.verify(candidate.path, files=files)), damaged
        except ResumeRefused:
            raise
        except CheckpointError as error:
            damaged.append(Damaged(candidate.path, str(error)))
    return None, damaged


def newest_valid(files: FileSystem, root: Path, run: str | None = None) -> Checkpoint:
    """The newest valid checkpoint in a root or in its ``checkpoints``; nothing there is changed.

    Raises:
        CheckpointError: there is none, or there are those of several runs and ``run`` names none of them.
        ResumeRefused: it was written for other versions of helios_fn or torch.
    """
    folder = root if root.name == "checkpoints" else root / "checkpoints"
    found = [entry for _, entry in survey(files, folder) if isinstance(entry, Checkpoint)]
    runs = sorted({entry.manifest.run for entry in found})
    if run is None and len(runs) > 1:
        raise CheckpointError(f"{root} holds the runs {', '.join(runs)}: name the run or the checkpoint that you mean")
    wanted = [entry for entry in found if run in (None, entry.manifest.run)]
    newest, damaged = first_valid(files, sorted(wanted, key=lambda entry: (-entry.iteration, -entry.micro_step)))
    for each in damaged:
        _LOGGER.warning("passing over %s: %s", each.path, each.reason)
    if newest is None:
        such = "" if run is None else f" of run {run!r}" + (f", but of {', '.join(runs)}" if runs else "")
        raise CheckpointError(f"there is no {'valid ' if wanted else ''}checkpoint{such} in {folder}")
    return newest
