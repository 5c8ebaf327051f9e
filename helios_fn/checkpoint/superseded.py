"""What resumes from older checkpoints left behind, in ``<root>/superseded/<k>``: how much it is, and its removal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from .files import disk_errors
from .manifest import FILE_NAME

FOLDER = "superseded"


class Superseded(NamedTuple):
    """What one resume left behind.

    Attributes:
        path: ``<root>/superseded/<k>``.
        checkpoints: how many checkpoints are in it; there may be the ends of logs too.
        size: the bytes of all its files.
    """

    path: Path
    checkpoints: int
    size: int


def superseded(root: Path) -> list[Superseded]:
    """All that resumes from older checkpoints left behind, of whatever run, oldest first.

    Raises:
        CheckpointError: the disk refused.
    """
    folder = root / FOLDER
    with disk_errors(f"look into {folder}"):
        names = os.listdir(folder) if folder.is_dir() else []
        numbered = sorted((name for name in names if name.isdecimal()), key=int)
        # What a link leads to is somebody else's.
        return [_measured(folder / name) for name in numbered if _is_real_folder(folder / name)]


def remove_superseded(found: Superseded) -> None:
    """Remove what one resume left behind. Hold the lock of its root.

    Raises:
        CheckpointError: the disk refused. What is left may be removed again.
    """
    with disk_errors(f"remove {found.path}"):
        shutil.rmtree(found.path)
        if not os.listdir(found.path.parent):
            found.path.parent.rmdir()


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _measured(folder: Path) -> Superseded:
    files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    checkpoints = sum(os.path.basename(file) == FILE_NAME for file in files)
    return Superseded(folder, checkpoints, sum(os.lstat(file).st_size for file in files))
