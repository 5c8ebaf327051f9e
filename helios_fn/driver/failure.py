"""What happens when training raises: the last complete state is saved and the error says where it happened."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import NonFiniteError, PurityError, RunFailed
from ..state import is_given_away
from .batches import describe_batch
from .evaluate import Validator
from .loop import TRYING, Loop

_LOGGER = logging.getLogger("helios_fn")


def save_after(error: BaseException, loop: Loop) -> Path | None:
    """Save the last complete state and say where it is, unless the error means that it cannot be trusted.

    A state that an impure step wrote to, or that is not finite, must never become the newest
    checkpoint, nor one whose log rows only some sinks have: then the checkpoint before stays the newest. Nor can
    a state be saved that was given away to a step which then failed. A save on its way has been ended before.
    """
    loop.outlets.discard()
    if loop.doing == TRYING:
        return None  # nothing has been trained, and the next start is to be a fresh one
    if loop.outlets.broken or isinstance(error, PurityError | NonFiniteError) or is_given_away(loop.complete):
        return None
    told = ""
    for lenient in (False, True):
        if _is_saved(loop) or not loop.folder.keeps:
            break
        try:
            # Inside: after a fault of an accelerator, reading anything from it raises.
            if int(loop.complete.first_bad) >= 0:
                return None
            loop.save(lenient=lenient)
            loop.saving.hear()
        except Exception as second:
            if str(second) != told:  # the second try may meet what the first one met, such as a full disk
                _LOGGER.warning("saving the state before the failure: %s", second)
            told = str(second)
    return loop.saving.last_checkpoint if _is_saved(loop) else None


def end_saving(error: BaseException, loop: Loop) -> BaseException:
    """End the save on its way, and say which error decides what may be saved now.

    What goes wrong with it must not hide the failure, nor be hidden by it: it is noted on ``error``.
    """
    try:
        loop.saving.hear()
    except Exception as second:
        error.add_note(f"Also, in the save that was on its way: {type(second).__name__}: {second}")
        _LOGGER.warning("in the save that was on its way when the run failed: %s: %s", type(second).__name__, second)
        if isinstance(second, PurityError):
            return second
    return error


def leave_others(error: BaseException, loop: Loop) -> BaseException:
    """Tell the other processes why this one leaves, and go, so that none waits for it.

    Returns ``error``, or what it means if it comes from a collective within the step.
    """
    found = loop.world.explained(error)
    if found is not error:
        found.__cause__ = error
    text = str(error).strip().split("\n")[0][:300]
    doing, ahead = loop.doing
    where = f"{doing} iteration {loop.complete.counters.iteration + ahead}"
    loop.world.note("failed", f"failed in {where}: {type(error).__name__}: {text}")
    loop.world.leave()
    return found


def _is_saved(loop: Loop) -> bool:
    return loop.saving.saved_at == loop.complete.counters.iteration


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
        return lost + ("" if loop.saving.last_checkpoint is None else _newest(loop.saving.last_checkpoint))
    if checkpoint is not None:
        return f". The state after iteration {loop.complete.counters.iteration} is saved in {checkpoint}"
    return "" if loop.saving.last_checkpoint is None else _newest(loop.saving.last_checkpoint)


def _newest(checkpoint: Path) -> str:
    return f". The newest checkpoint is {checkpoint}: running the same line again goes on from it"
