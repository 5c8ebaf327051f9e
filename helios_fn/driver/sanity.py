"""Validation tried out before the first step, so that a fault in it costs no training."""

from __future__ import annotations

from .. import random
from .evaluate import Validator
from .guard import check_unwritten, versions
from .loop import TRYING, Loop
from .validation import record_validation


def try_validation(loop: Loop) -> None:
    """Validate on the first batches of a fresh run. Nothing is recorded, and no bit of the run changes.

    Raises what validation and its bookkeeping would raise later.
    """
    cfg, state, validate = loop.cfg, loop.state, loop.validate
    if not cfg.sanity_batches or state.counters.iteration or validate is None:
        return
    doing, loop.doing = loop.doing, TRYING
    before = versions(state)
    with random.scope(random.fold_in(state.key, "validation", 0)):
        if isinstance(validate, Validator):
            metrics = validate.try_out(state, cfg.sanity_batches)
        else:
            metrics = validate(state)
    check_unwritten("validate", state, before)
    if metrics is not None:
        record_validation(state.validation, metrics, cfg.early_stop, cfg.retention)  # for what it refuses
    loop.doing = doing
