"""What happens when training raises: the last complete state is saved and the error says where it happened."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import NonFiniteError, PurityError, RunFailed
from ..state import is_given_away
from .batches import describe_batch
from .evaluate import Validator
from .loop import Loop

_LOGGER = logging.getLogger("helios_fn")


def save_after(error: Exception, loop: Loop) -> Path | None:
    """Save the last complete state and say where it is, unless the error means that it cannot be trusted.

    A state that an impure step wrote to, or that is not finite, must never become the newest
    checkpoint, nor one whose log rows only some sinks have: then the checkpoint before stays the newest. Nor can
    a state be saved that was given away to a step which then failed.
    """
    loop.outlets.discard()
    if loop.outlets.broken or isinstance(error, PurityError | NonFiniteError) or is_given_away(loop.complete):
        return None
    for lenient in (False, True):
        if loop.saved_at == loop.complete.counters.iteration or not loop.folder.keeps:
            break
        try:
            # Inside: after a fault of an accelerator, reading anything from it raises.
            if int(loop.complete.first_bad) >= 0:
                return None
            loop.save(lenient=lenient)
        except Exception as second:
            _LOGGER.warning("saving the state before the failure: %s", second)
    return loop.last_checkpoint if loop.saved_at == loop.complete.counters.iteration else None


def run_failed(error: Exception, loop: Loop, checkpoint: Path | None) -> RunFailed:
    """The error that users see, in one line; the original is to be its cause."""
    state = loop.complete
    done = state.counters.iteration
    doing, ahead = loop.doing
    batch = loop.batch
    if doing.startswith("validation") and isinstance(loop.validate, Validator):
        batch = loop.validate.last_batch
    shapes = "" if batch is None else f" on batch {describe_batch(batch)}"
    where = f" in {doing} iteration {done + ahead} (epoch {state.cursor.epoch}, batch {state.cursor.batch}){shapes}"
    if isinstance(error, NonFiniteError):
        where = ""  # noticed later than it happened; the error itself says when
    message = f"training failed{where}: {type(error).__name__}: {error}{_where_to_go_on(loop, checkpoint)}"
    return RunFailed(message, state=state, iteration=done, batch=describe_batch(batch), checkpoint=checkpoint)


def _where_to_go_on(loop: Loop, checkpoint: Path | None) -> str:
    if is_given_away(loop.complete):
        lost = ". The state before it cannot be saved, for its memory was given away to the step (donate)"
        return lost + ("" if loop.last_checkpoint is None else _newest(loop.last_checkpoint))
    if checkpoint is not None:
        return f". The state after iteration {loop.complete.counters.iteration} is saved in {checkpoint}"
    return "" if loop.last_checkpoint is None else _newest(loop.last_checkpoint)


def _newest(checkpoint: Path) -> str:
    return f". The newest checkpoint is {checkpoint}: running the same line again goes on from it"
