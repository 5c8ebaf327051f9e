"""The border of the driver: what users hand over is checked here, once, before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import tree
from ..checkpoint import check_saveable
from ..config import RunConfig
from ..data import Phases
from ..state import OUTPUT_ONLY, TrainState
from ..types import Json, Source
from .evaluate import Validator

_RECORDED = frozenset(
    {"config", "cycles", "environment", "geometry", "history", "log_dir", "processes", "sinks", "validation"}
)


def check_step(step: Any) -> None:
    """Check that the step is a function; raises TypeError."""
    if isinstance(step, TrainState) or not callable(step):
        raise TypeError(
            f"step must be a function step(state, batch) -> state, got {type(step).__name__}: "
            "the order is run(step, init_state, loader, cfg)"
        )


def check_combination(
    cfg: RunConfig, source: Source | Phases, validate: Any, should_stop: Callable[[TrainState], Any] | None
) -> None:
    """Check that the arguments of a run fit each other; raises ValueError with the remedy."""
    if cfg.device is not None:
        try:
            torch.empty(0, device=cfg.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device={cfg.device!r} cannot be used: {error}") from error
    if cfg.total == math.inf and should_stop is None and cfg.early_stop is None and cfg.max_time is None:
        raise ValueError(
            "total=math.inf would train for ever: set early_stop or max_time, pass should_stop, or give a total"
        )
    if cfg.validate_every is not None and validate is None:
        raise ValueError("validate_every is set but there is nothing to call: pass validate, such as hf.Validator")
    if validate is not None and cfg.validate_every is None:
        raise ValueError("validate is given but would never be called: set validate_every")
    if isinstance(validate, Validator) and validate.source is source:
        raise ValueError(
            "validate reads the training loader, and a loader has one reader at a time: give it loader.replace()"
        )
    sources = [source.source(phase) for phase in range(len(source))] if isinstance(source, Phases) else [source]
    if any(each.batches_per_epoch is None for each in sources):
        _check_stream(cfg)


def checked_record(record: Any) -> dict[str, Json]:
    """The user's facts for the manifest; raises TypeError or ValueError where they are no JSON or the run's own."""
    if record is None:
        return {}
    if not isinstance(record, Mapping):
        raise TypeError(f"record must map names to plain JSON values, got {tree.describe(record)}")
    for name, value in record.items():
        if not isinstance(name, str) or name in _RECORDED:
            taken = ", ".join(sorted(_RECORDED))
            raise ValueError(f"record names its facts by texts other than {taken}, which are the run's; got {name!r}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"record[{name!r}] cannot be stored as JSON: {error}") from error
    return dict(record)


def _check_stream(cfg: RunConfig) -> None:
    if cfg.unit == "epoch":
        raise ValueError("a stream has no epochs to count: use unit='iteration'")
    for field in ("log_every", "fingerprint_every", "validate_every", "checkpoint_every"):
        cadence = cfg.cadence(field)
        if cadence is not None and cadence.unit == "epoch":
            raise ValueError(f"{field} counts epochs, but a stream has none: count iterations")


def checked_state(state: Any, cfg: RunConfig) -> TrainState:
    """The state to start afresh from, with the first ``best`` that early stopping needs.

    Raises:
        TypeError: it is no `TrainState`, or holds leaves that cannot be saved exactly.
        ValueError: it went bad in an earlier run.
    """
    if type(state) is not TrainState:
        raise TypeError(
            f"init_state must be a TrainState or a function that returns one, got {type(state).__name__}: "
            "build it with hf.init_state(params, optimizer, ...)"
        )
    state = tree.map(_detached, state)
    check_saveable(state, free=OUTPUT_ONLY, sharded=True)
    if int(state.first_bad) >= 0:
        raise ValueError(
            f"init_state went bad in iteration {int(state.first_bad) + 1}: its first_bad must be -1 to start from"
        )
    if cfg.early_stop is not None and math.isinf(state.validation.best):
        state = state.replace(validation=state.validation._replace(best=cfg.early_stop.worst))
    return state


def _detached(leaf: Any) -> Any:
    # Nobody differentiates through a run, and a graph that grows from step to step would fill the memory.
    return leaf.detach() if isinstance(leaf, torch.Tensor) and leaf.requires_grad else leaf
