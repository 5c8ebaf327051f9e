"""What happens when training raises: the last complete state is saved and the error says where it happened."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import NonFiniteError, PurityError, RunFailed
from .batches import describe_batch
from .loop import Loop

_LOGGER = logging.getLogger("helios_fn")


def save_after(error: Exception, loop: Loop) -> Path | None:
    """Save the last complete state, unless the error means that it cannot be trusted.

    A state that an impure step wrote to, or that is not finite, must never become the newest checkpoint.
    """
    if isinstance(error, PurityError | NonFiniteError) or int(loop.state.first_bad) >= 0:
        return None
    if loop.saved_at == loop.state.counters.iteration or not loop.folder.keeps:
        return loop.last_checkpoint
    try:
        loop.save()
    except Exception as second:
        _LOGGER.warning("the state before the failure could not be saved: %s", second)
        return None
    return loop.last_checkpoint


def run_failed(error: Exception, loop: Loop, checkpoint: Path | None) -> RunFailed:
    """The error that users see, in one line; the original is to be its cause."""
    iteration = loop.state.counters.iteration
    cursor = loop.state.cursor
    batch = describe_batch(loop.batch)
    where = f"iteration {iteration + 1} (epoch {cursor.epoch}, batch {cursor.batch})"
    shapes = "" if loop.batch is None else f" on batch {batch}"
    saved = f". The state after iteration {iteration} is saved in {checkpoint}" if checkpoint is not None else ""
    message = f"training failed in {where}{shapes}: {type(error).__name__}: {error}{saved}"
    return RunFailed(message, state=loop.state, iteration=iteration, batch=batch, checkpoint=checkpoint)
