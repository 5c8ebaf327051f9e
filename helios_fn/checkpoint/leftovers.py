"""What a killed process leaves in a folder of checkpoints, and how to finish its work."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import CheckpointError
from . import format
from .files import FileSystem, remove_folder, sync_files
from .names import UNFINISHED, folder_name
from .pruning import sweep

_log = logging.getLogger("helios_fn")


def finish(files: FileSystem, folder: Path) -> None:
    """Keep checkpoints that had been written completely; remove incomplete ones and those being removed.

    What is found from then on is durable.
    """
    sweep(files, folder)
    for name in files.listdir(folder):
        if name.startswith(UNFINISHED):
            _recover(files, folder, name)
    files.sync_folder(folder)


def _recover(files: FileSystem, parent: Path, name: str) -> None:
    unfinished, folder = parent / name, parent / name.removeprefix(UNFINISHED)
    try:
        found = format.verify(unfinished, files=files)
        intended = folder_name(found.run, found.epoch, found.micro_step, found.metadata)
        complete = intended == folder.name and folder.name not in files.listdir(parent)
    except CheckpointError:
        complete = False
    if complete:
        sync_files(files, unfinished)
        files.rename(unfinished, folder)
        _log.warning("%s had been written completely when its process ended; it is kept", folder)
    else:
        remove_folder(files, unfinished)
