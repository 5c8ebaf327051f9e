"""The folder of a run whose state is sharded over its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ..checkpoint import Checkpoint, Save
from ..checkpoint.format import read_manifest
from ..config import RunConfig
from ..distributed import World
from ..state import TrainState
from ..types import Json
from .folder import RunFolder, Start
from .together import by_main


class ShardedFolder:
    """Rank 0 looks into the folder, locks it and chooses; every process reads and writes its pieces of the state.

    All must see the same file system. What the processes can only do together ends when one of them is lost: then
    nothing more is saved, and the newest checkpoint stays the newest.

    Args:
        folder: made for these processes, see `RunFolder`.
        world: the processes.
        cfg: the run's.

    Raises:
        ValueError: something in ``cfg`` would have them save at different times.
    """

    def __init__(self, folder: RunFolder, world: World, cfg: RunConfig) -> None:
        self._folder, self._world = folder, world
        if cfg.checkpoint_every_seconds is not None:
            raise ValueError(
                "checkpoint_every_seconds goes by the clock of each process, but a sharded state is saved by all "
                "together: set checkpoint_every"
            )

    def __enter__(self) -> Self:
        self._folder.__enter__()
        by_main(self._world, self._folder.lock)
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.__exit__(*exception)

    @property
    def keeps(self) -> bool:
        """Whether there is a root to save into, and the processes are together."""
        return self._folder.keeps and self._world.together

    def start(self, fresh: TrainState) -> Start:
        """See `RunFolder.start`. A fresh state is each process's own."""
        chosen = self._told(by_main(self._world, self._folder.choose))
        return self._folder.go_on(chosen, fresh)

    def rollback(self, like: TrainState) -> Start:
        """See `RunFolder.rollback`."""
        chosen = self._told(by_main(self._world, self._folder.newest))
        assert chosen is not None  # rank 0 raises where there is none
        return self._folder.back_to(chosen, like)

    def save(self, state: TrainState, marks: dict[str, Json], *, metadata: bool = True) -> Save:
        """See `RunFolder.save`; by all processes, and done when it returns."""
        return self._folder.save(state, marks, metadata=metadata)

    def _told(self, chosen: Checkpoint | None) -> Checkpoint | None:
        told: Any = self._world.tell_all(None if chosen is None else str(chosen.path))
        if told is None or chosen is not None:
            return chosen
        return Checkpoint(Path(told), read_manifest(Path(told)))
