"""A checkpoint between its two halves: what the training thread has checked, and what is left to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from . import format
from .files import FileSystem
from .manifest import Manifest, encode
from .snapshot import Snapshot
from .untouched import Untouched


class Pending(NamedTuple):
    """A checkpoint that has been checked and is yet to be written; it keeps the state's tensors alive."""

    folder: Path
    description: Manifest
    untouched: Untouched


def holds(files: FileSystem, pending: Pending, content: Snapshot) -> bool:
    """Whether its folder is a valid checkpoint of exactly this already."""
    folder, description, _ = pending
    if folder.name not in files.listdir(folder.parent):
        return False
    try:
        found = format.read_manifest(folder, files=files)
        wanted = description._replace(files=found.files, versions=found.versions)
        if encode(wanted) != encode(found) or content.files() != found.files:
            return False
        format.verify(folder, files=files)
    except CheckpointError:
        return False
    return True
