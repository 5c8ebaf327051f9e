"""The names of checkpoint folders. They are for people: what a checkpoint is, its manifest says."""

from __future__ import annotations

import re

from ..config import NAME_PATTERN

UNFINISHED = ".writing-"
"""Begins the name of a folder being written. No run's name begins with a dot, so no checkpoint's does."""

REMOVED = ".removing-"
"""Begins the name of a folder that is about to be deleted, for the same reason."""


def check_name(what: str, value: str) -> None:
    """Check a part of a file name that comes from a user.

    Raises:
        ValueError: it could lead elsewhere, or is too long.
    """
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{what}={value!r} cannot name files: use 1 to 64 letters, digits, '_', '.' and '-', "
            "starting with a letter or digit"
        )


def folder_name(run: str, epoch: int, micro_step: int, metadata: str = "") -> str:
    """``<run>_epoch_<epoch>_iter_<micro_step>[_<metadata>]``."""
    name = f"{run}_epoch_{epoch}_iter_{micro_step}"
    return f"{name}_{metadata}" if metadata else name


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder bears the name of a checkpoint of any run."""
    return re.fullmatch(r"[^.].*_epoch_\d+_iter_\d+(_.*)?", name, re.ASCII | re.DOTALL) is not None


def may_belong_to(run: str, name: str) -> bool:
    """Whether a folder that cannot speak for itself bears the name of a run's checkpoint."""
    return re.fullmatch(rf"{re.escape(run)}_epoch_\d+_iter_\d+(_.*)?", name, re.ASCII | re.DOTALL) is not None
