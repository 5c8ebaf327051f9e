"""What the processes of a run do together at its borders: rank 0 owns the folder, and the others are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from ..checkpoint import Save
from ..checkpoint.transfer import packed, unpacked
from ..distributed import World
from ..errors import CheckpointError, ResumeRefused, RootLocked
from ..state import OUTPUT_ONLY, TrainState
from ..types import Json
from .folder import RunFolder, Start

_LOGGER = logging.getLogger("helios_fn")
_ERRORS = {kind.__name__: kind for kind in (CheckpointError, ResumeRefused, RootLocked, ValueError, TypeError)}

T = TypeVar("T")


class SharedFolder:
    """The folder of a run of several processes: only rank 0 looks into it, locks it and writes to it.

    Every process calls `start` and `rollback`, and gets what rank 0 has found: the state is sent, so the others need
    not see the folder's disk. If rank 0 fails, all fail with its error.

    Args:
        folder: what it would be for a process alone.
        world: the processes.
    """

    def __init__(self, folder: RunFolder, world: World) -> None:
        self._folder, self._world = folder, world

    def __enter__(self) -> Self:
        by_main(self._world, self._folder.__enter__)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._world.is_main:
            self._folder.__exit__(*exception)

    @property
    def keeps(self) -> bool:
        """Whether this process saves."""
        return self._world.is_main and self._folder.keeps

    def start(self, fresh: TrainState) -> Start:
        """See `RunFolder.start`. A fresh state is that of rank 0, too."""
        return self._told(by_main(self._world, lambda: self._folder.start(fresh)), fresh)

    def rollback(self, like: TrainState) -> Start:
        """See `RunFolder.rollback`."""
        return self._told(by_main(self._world, lambda: self._folder.rollback(like)), like)

    def save(self, state: TrainState, marks: dict[str, Json], *, metadata: bool = True) -> Save:
        """See `RunFolder.save`; for rank 0."""
        return self._folder.save(state, marks, metadata=metadata)

    def _told(self, start: Start | None, like: TrainState) -> Start:
        world = self._world
        if start is not None:
            description, parts = packed(start.state)
            places = [None if path is None else str(path) for path in (start.log_dir, start.superseded)]
            world.tell_all([description.decode(), *places])
            for part in parts:
                world.broadcast_(part)
            return start
        told: Any = world.tell_all(None)
        description, log_dir, superseded = told
        state = unpacked(description.encode(), like, world.broadcast_, free=OUTPUT_ONLY)
        return Start(state, {}, _path(log_dir), _path(superseded), None)


def by_main(world: World, call: Callable[[], T]) -> T | None:
    """What ``call`` returns on rank 0, and ``None`` on the others; an exception of it is raised on all processes."""
    if world.is_main:
        try:
            found = call()
        except Exception as error:
            world.tell_all([type(error).__name__, str(error)])
            raise
        world.tell_all(None)
        return found
    failed: Any = world.tell_all(None)
    if failed is not None:
        kind, message = failed
        raise _ERRORS.get(kind, RuntimeError)(f"rank 0 failed: {message}")
    return None


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
