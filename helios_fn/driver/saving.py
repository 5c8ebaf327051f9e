"""The saves of one run: one may be on its way while training goes on, and only durable ones count."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..checkpoint import Save
from ..state import TrainState
from ..types import Json
from .folder import RunFolder, Start
from .outlets import Outlets
from .sharded import ShardedFolder
from .together import SharedFolder


class _Flight(NamedTuple):
    """A save that nobody has heard of yet; the state only where an observer wants to see it."""

    save: Save
    iteration: int
    state: TrainState | None


class Saving:
    """Hands states to the writer, and tells of each when it is on disk: in order, and in the training thread.

    Args:
        folder: where to.
        outlets: whom to tell.

    Attributes:
        last_checkpoint: the newest checkpoint that is durable, if any.
        saved_at: its iteration, or -1.
        begun_at: the iteration of the newest state that was handed to the writer.
    """

    def __init__(self, folder: RunFolder | SharedFolder | ShardedFolder, outlets: Outlets) -> None:
        self._folder = folder
        self._outlets = outlets
        self._flight: _Flight | None = None
        self.last_checkpoint: Path | None = None
        self.saved_at = self.begun_at = -1

    def begin(self, start: Start) -> None:
        """Go on from a state: the first one, or after a rollback, before which nothing may be on its way."""
        self.last_checkpoint = start.checkpoint
        self.saved_at = self.begun_at = -1 if start.checkpoint is None else start.state.counters.iteration

    @property
    def news(self) -> bool:
        """Whether a save has ended that nobody has heard of."""
        return self._flight is not None and self._flight.save.ended

    @property
    def writing(self) -> bool:
        """Whether a state is still being read."""
        return self._flight is not None and not self._flight.save.ended

    def submit(self, state: TrainState, marks: dict[str, Json], *, metadata: bool) -> None:
        """Begin to save ``state``; the save before must have been heard of, by `hear`."""
        save = self._folder.save(state, marks, metadata=metadata)
        shown = state if self._outlets.listening("on_checkpoint") else None
        self.begun_at = state.counters.iteration
        self._flight = _Flight(save, self.begun_at, shown)

    def hear(self) -> None:
        """Wait for the save on its way, if there is one, and tell of it.

        Raises:
            CheckpointError: it failed, and is no checkpoint; or what was to be done after it failed.
        """
        if self._flight is None:
            return
        self._flight.save.wait()
        (save, iteration, state), self._flight = self._flight, None
        try:
            if save.durable:
                self.last_checkpoint, self.saved_at = save.path, iteration
                if state is not None:
                    self._outlets.emit("on_checkpoint", save.path, state)
        finally:
            if save.error is not None:
                raise save.error
