"""The fingerprints of a run: what they are made of, also where several processes have parts of a batch each."""

from __future__ import annotations

import time
from typing import Any

from ..distributed import World
from ..fingerprint import fingerprint
from ..state import TrainState
from ..types import Fingerprint, MicroBatches


class Fingerprints:
    """Digests the batch before a step and the state after it.

    Every process of a run calls both methods, at the same iterations: the digests of all micro-batches come together,
    so that the result does not depend on the number of processes. The state is the same on all of them, and digested
    by rank 0, which logs.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._batch: dict[str, str] = {}

    def receive(self, batch: Any) -> None:
        """Digest what a step is about to receive."""
        mine = batch_fingerprint(batch)
        self._batch = mine
        if self._world.size > 1:
            parts: list[Any] = [self._world.tell_all(dict(mine), rank) for rank in range(self._world.size)]
            self._batch = {path: digest for part in parts for path, digest in part.items()}

    def of(self, state: TrainState) -> Fingerprint:
        """The fingerprint of the iteration that made ``state`` of the batch that was received last."""
        counters = state.counters
        return Fingerprint(
            counters.iteration,
            counters.micro_step,
            state.cursor.epoch,
            fingerprint(state) if self._world.is_main else {},
            self._batch,
            time.time(),
        )


def batch_fingerprint(batch: Any) -> dict[str, str]:
    """The digests of what a step receives; those of `MicroBatches` by their number within the iteration."""
    if not isinstance(batch, MicroBatches):
        return fingerprint(batch)
    return {
        f"micro-batch {index}{_joined(path)}": digest
        for index, item in enumerate(batch.items, start=batch.start)
        for path, digest in fingerprint(item).items()
    }


def _joined(path: str) -> str:
    return path if not path or path.startswith("[") else f".{path}"
