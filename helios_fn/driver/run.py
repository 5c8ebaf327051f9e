"""The driver's front: check the border, open the surroundings, run the loop, close everything."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from .. import schedule
from ..checkpoint import check_saveable
from ..config import RunConfig
from ..data import Phases, as_source
from ..finite import skip_non_finite
from ..sinks import Progress
from ..state import TrainState
from ..types import Json, Observer, Reason, Result, RunInfo, Sink, Source, Step
from .failure import run_failed, save_after
from .folder import RunFolder, Start
from .guard import PurityGuard
from .loop import Loop, ShouldStop, Validate
from .outlets import Outlets
from .record import environment, geometry
from .signals import StopSignal

PassThrough = tuple[type[BaseException], ...]


def run(
    step: Step,
    init_state: TrainState | Callable[[], TrainState],
    loader: Any,
    cfg: RunConfig,
    *,
    validate: Validate | None = None,
    sinks: Iterable[Sink] = (),
    observers: Iterable[Observer] = (),
    should_stop: ShouldStop | None = None,
    pass_through: PassThrough = (),
    checkpoint_metadata: Callable[[TrainState], str] | None = None,
) -> Result:
    """Train until the configured end and return the final state and the reason.

    With a root, run the same line again after any interruption and it goes on from the newest valid
    checkpoint; the final state, the batches and the log rows are those of a run that never stopped,
    bit for bit.

    Args:
        step: pure ``step(state, batch) -> state``; from `make_step` or written by hand.
        init_state: the state to start from, or a function that makes it.
        loader: a `Loader`, `Stream`, `Phases`, anything with the protocol `Source`, or a map-style
            torch ``DataLoader``.
        cfg: what to do and when.
        validate: ``validate(state) -> {name: scalar}``, such as a `Validator`.
        sinks: receivers of log rows.
        observers: readers of events.
        should_stop: asked once per iteration, after any validation; ``True`` or a text ends the run.
            Must depend on the state alone.
        pass_through: exception types that are raised unchanged instead of as `RunFailed`.
        checkpoint_metadata: ``metadata(state) -> str``, appended to the names of checkpoints.

    Raises:
        ValueError: the arguments contradict each other; nothing has been written.
        CheckpointError: the root cannot be used, or the wanted checkpoint does not exist.
        ResumeRefused: the newest checkpoint belongs to another run.
        RunFailed: step, loader, validation or an observer raised; the last complete state is saved.
    """
    states = iterate(
        step,
        init_state,
        loader,
        cfg,
        validate=validate,
        sinks=sinks,
        observers=observers,
        should_stop=should_stop,
        pass_through=pass_through,
        checkpoint_metadata=checkpoint_metadata,
    )
    while True:
        try:
            next(states)
        except StopIteration as end:
            return end.value


def iterate(
    step: Step,
    init_state: TrainState | Callable[[], TrainState],
    loader: Any,
    cfg: RunConfig,
    *,
    validate: Validate | None = None,
    sinks: Iterable[Sink] = (),
    observers: Iterable[Observer] = (),
    should_stop: ShouldStop | None = None,
    pass_through: PassThrough = (),
    checkpoint_metadata: Callable[[TrainState], str] | None = None,
) -> Generator[TrainState, None, Result]:
    """The same loop as `run`, as a generator: yields the state after each iteration.

    For people who keep their own loop. Leaving it early saves the last state, as `run` does at its
    end. The generator's return value is the `Result`. Arguments and errors are those of `run`.
    """
    source = loader if isinstance(loader, Phases) else as_source(loader)
    share = schedule.share_of(cfg, *_process())
    _check_combination(cfg, source, validate, should_stop)
    fresh = _checked_state(init_state() if callable(init_state) else init_state, cfg)
    progress = [Progress()] if cfg.progress else []
    outlets = Outlets(sinks, [*progress, *observers])
    facts: dict[str, Json] = {
        "geometry": geometry(cfg, share, source.describe(), fresh),
        "environment": environment(cfg),
    }
    folder = RunFolder(cfg, facts, checkpoint_metadata)
    guarded = skip_non_finite(step) if cfg.non_finite == "skip" else step
    guard = PurityGuard(guarded, cfg.purity_checks)
    signal = StopSignal()
    loop = Loop(guard, source, cfg, share, folder, outlets, signal, validate=validate, should_stop=should_stop)
    return _drive(loop, fresh, pass_through)


def _drive(loop: Loop, fresh: TrainState, pass_through: PassThrough) -> Generator[TrainState, None, Result]:
    """Everything around the loop: open, start, train, save the last state, close."""
    reason: Reason | None = None
    with ExitStack() as surroundings:
        surroundings.enter_context(loop.folder)
        surroundings.callback(loop.source.close)
        start = loop.folder.start(fresh)
        loop.begin(fresh, start)
        surroundings.callback(loop.outlets.close)
        info = _info(loop, start)
        loop.outlets.open(info, start.marks)
        surroundings.enter_context(loop.signal)
        try:
            if loop.saved_at < 0:
                loop.save()
            loop.outlets.emit("on_start", info, loop.state)
            reason = yield from loop.train()
            if reason is not Reason.NON_FINITE:
                _save_last(loop)
        except GeneratorExit:
            _save_last(loop)
            raise
        except pass_through as error:
            if isinstance(error, Exception):
                save_after(error, loop)
            raise
        except Exception as error:
            raise run_failed(error, loop, save_after(error, loop)) from error
        finally:
            loop.outlets.emit("on_end", loop.state, reason)
    return Result(loop.state, reason, loop.message)


def _save_last(loop: Loop) -> None:
    if loop.saved_at != loop.state.counters.iteration and int(loop.state.first_bad) < 0:
        loop.save()


def _info(loop: Loop, start: Start) -> RunInfo:
    phase = loop.source.source(start.state.cursor.phase) if isinstance(loop.source, Phases) else loop.source
    return RunInfo(
        name=loop.cfg.name,
        unit=loop.cfg.unit,
        total=loop.cfg.total,
        micro_batches=loop.share.micro_batches,
        batches_per_epoch=phase.batches_per_epoch,
        start_iteration=start.state.counters.iteration,
        start_epoch=start.state.cursor.epoch,
        start_batch=start.state.cursor.batch,
        log_dir=start.log_dir,
        superseded=start.superseded,
    )


def _process() -> tuple[int, int]:
    """This process's rank and the number of processes, which for now must be one."""
    world = torch.distributed.get_world_size() if _distributed() else int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise NotImplementedError(
            f"this process is one of {world}, but training over several processes is not in this version: start one"
        )
    return 0, 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _check_combination(
    cfg: RunConfig, source: Source | Phases, validate: Validate | None, should_stop: ShouldStop | None
) -> None:
    if cfg.total == math.inf and should_stop is None and cfg.early_stop is None:
        raise ValueError("total=math.inf would train for ever: set early_stop, pass should_stop, or give a total")
    if cfg.validate_every is not None and validate is None:
        raise ValueError("validate_every is set but there is nothing to call: pass validate, such as hf.Validator")
    if validate is not None and cfg.validate_every is None:
        raise ValueError("validate is given but would never be called: set validate_every")
    sources = [source.source(phase) for phase in range(len(source))] if isinstance(source, Phases) else [source]
    if any(each.batches_per_epoch is None for each in sources):
        _check_stream(cfg)


def _check_stream(cfg: RunConfig) -> None:
    if cfg.unit == "epoch":
        raise ValueError("a stream has no epochs to count: use unit='iteration'")
    for field in ("log_every", "validate_every", "checkpoint_every"):
        cadence = cfg.cadence(field)
        if cadence is not None and cadence.unit == "epoch":
            raise ValueError(f"{field} counts epochs, but a stream has none: count iterations")


def _checked_state(state: Any, cfg: RunConfig) -> TrainState:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"init_state must be a TrainState or a function that returns one, got {type(state).__name__}: "
            "build it with hf.init_state(params, optimizer, ...)"
        )
    check_saveable(state)
    if cfg.early_stop is not None and state.validation.cycles == 0:
        state = state.replace(validation=state.validation._replace(best=cfg.early_stop.worst))
    return state
