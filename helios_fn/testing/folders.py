"""Folders for the runs of a check: in memory where there is room, since nothing in them has to outlive the check."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = "/dev/shm"
_STATES = 1000  # more checkpoints than any check keeps at a time


def temporary_folder(state_bytes: int = 0) -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone when its context ends.

    A run with a checkpoint in every other iteration spends most of its time waiting for the disk; in memory it does
    not. A folder that the user has chosen, by ``TMPDIR``, is taken as it is.
    """
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if not chosen and Path(_MEMORY).is_dir() and os.access(_MEMORY, os.W_OK):
        room = shutil.disk_usage(_MEMORY).free
        if room > 2**24 and room > _STATES * state_bytes:
            return tempfile.TemporaryDirectory(prefix="helios-fn-", dir=_MEMORY)
    return tempfile.TemporaryDirectory(prefix="helios-fn-")
