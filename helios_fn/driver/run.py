"""The driver's front: check the border, open the surroundings, run the loop, close everything."""

from __future__ import annotations

import logging
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
from ..sinks import Progress
from ..state import TrainState
from ..types import Json, Observer, Reason, Result, RunInfo, Sink, Source, Step
from .evaluate import Validator
from .failure import run_failed, save_after
from .folder import RunFolder, Start
from .guard import OUTPUT_ONLY, PurityGuard
from .loop import Loop, ShouldStop, Surroundings, Validate
from .outlets import Outlets
from .record import environment, geometry
from .signals import StopSignal

_LOGGER = logging.getLogger("helios_fn")
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
    pass_through: Iterable[type[BaseException]] = (),
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
        should_stop: asked once per iteration, after any validation, and of a restored state before its
            first step; ``True`` or a text ends the run. Must depend on the state alone.
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
    pass_through: Iterable[type[BaseException]] = (),
    checkpoint_metadata: Callable[[TrainState], str] | None = None,
) -> Generator[TrainState, None, Result]:
    """The same loop as `run`, as a generator: yields the state after each iteration.

    For people who keep their own loop. Leaving it early saves the last state, as `run` does at its
    end. After a rollback, iterations come again. The generator's return value is the `Result`. Arguments
    and errors are those of `run`.
    """
    _check_step(step)
    source = as_source(loader)
    share = schedule.share_of(cfg, *_process())
    _check_combination(cfg, source, validate, should_stop)
    fresh = _checked_state(init_state() if callable(init_state) else init_state, cfg)
    facts: dict[str, Json] = {
        "geometry": geometry(cfg, share, source.describe(), fresh),
        "environment": environment(cfg),
    }
    progress = [Progress()] if cfg.progress else []
    around = Surroundings(
        step=PurityGuard(step, cfg.purity_checks),
        source=source,
        cfg=cfg,
        share=share,
        folder=RunFolder(cfg, facts, checkpoint_metadata),
        outlets=Outlets(sinks, [*progress, *observers]),
        signal=StopSignal(),
        validate=validate,
        should_stop=should_stop,
    )
    return _drive(around, [fresh], _checked_types(pass_through))


def _drive(
    around: Surroundings, initial: list[TrainState], pass_through: PassThrough
) -> Generator[TrainState, None, Result]:
    """Everything around the loop: open, start, train, save the last state, close.

    ``initial`` is a list so that it can be emptied: nobody is to hold a state that training has left.
    """
    with ExitStack() as stack:
        stack.enter_context(around.folder)
        stack.callback(_close_sources, around)
        start = around.folder.start(initial.pop())
        info = _info(around, start)
        stack.callback(around.outlets.close)
        around.outlets.open(info, start.marks)
        loop = Loop(around, start)
        del start
        stack.enter_context(around.signal)
        try:
            return (yield from _lead(loop, info))
        except GeneratorExit:
            _save_last(loop)
            _tell_of_failure(loop)
            raise
        except BaseException as error:
            failed = save_after(error, loop) if isinstance(error, Exception) else None
            _tell_of_failure(loop)
            if isinstance(error, pass_through) or not isinstance(error, Exception):
                raise
            raise run_failed(error, loop, failed) from error


def _lead(loop: Loop, info: RunInfo) -> Generator[TrainState, None, Result]:
    """A run from its start to its good end."""
    loop.outlets.emit("on_start", info, loop.state)
    if loop.saved_at < 0:
        loop.save()
    reason = yield from loop.train()
    loop.doing = ("the end after", 0)
    if reason is not Reason.NON_FINITE:
        _save_last(loop)
    loop.outlets.emit("on_end", loop.state, reason)
    loop.outlets.close()
    return Result(loop.state, reason, loop.message)


def _save_last(loop: Loop) -> None:
    if loop.saved_at != loop.complete.counters.iteration and int(loop.complete.first_bad) < 0:
        loop.save()


def _tell_of_failure(loop: Loop) -> None:
    """Let observers and sinks end; what they raise must not hide the failure itself."""
    for ending in (lambda: loop.outlets.emit("on_end", loop.complete, None), loop.outlets.close):
        try:
            ending()
        except Exception as error:
            _LOGGER.warning("at the end of a run that had failed: %s: %s", type(error).__name__, error)


def _close_sources(around: Surroundings) -> None:
    around.source.close()
    if isinstance(around.validate, Validator):
        around.validate.close()


def _info(around: Surroundings, start: Start) -> RunInfo:
    source = around.source
    phase = source.source(start.state.cursor.phase) if isinstance(source, Phases) else source
    return RunInfo(
        name=around.cfg.name,
        unit=around.cfg.unit,
        total=around.cfg.total,
        micro_batches=around.share.micro_batches,
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


def _check_step(step: Any) -> None:
    if isinstance(step, TrainState) or not callable(step):
        raise TypeError(
            f"step must be a function step(state, batch) -> state, got {type(step).__name__}: "
            "the order is run(step, init_state, loader, cfg)"
        )


def _check_combination(
    cfg: RunConfig, source: Source | Phases, validate: Validate | None, should_stop: ShouldStop | None
) -> None:
    if cfg.device is not None:
        try:
            torch.empty(0, device=cfg.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device={cfg.device!r} cannot be used: {error}") from error
    if cfg.total == math.inf and should_stop is None and cfg.early_stop is None:
        raise ValueError("total=math.inf would train for ever: set early_stop, pass should_stop, or give a total")
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


def _checked_types(pass_through: Iterable[type[BaseException]]) -> PassThrough:
    types = tuple(pass_through)
    for each in types:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"pass_through lists exception types, got {each!r}")
    return types


def _check_stream(cfg: RunConfig) -> None:
    if cfg.unit == "epoch":
        raise ValueError("a stream has no epochs to count: use unit='iteration'")
    for field in ("log_every", "validate_every", "checkpoint_every"):
        cadence = cfg.cadence(field)
        if cadence is not None and cadence.unit == "epoch":
            raise ValueError(f"{field} counts epochs, but a stream has none: count iterations")


def _checked_state(state: Any, cfg: RunConfig) -> TrainState:
    if type(state) is not TrainState:
        raise TypeError(
            f"init_state must be a TrainState or a function that returns one, got {type(state).__name__}: "
            "build it with hf.init_state(params, optimizer, ...)"
        )
    check_saveable(state, free=OUTPUT_ONLY)
    if int(state.first_bad) >= 0:
        raise ValueError(
            f"init_state went bad in iteration {int(state.first_bad) + 1}: its first_bad must be -1 to start from"
        )
    if cfg.early_stop is not None and math.isinf(state.validation.best):
        state = state.replace(validation=state.validation._replace(best=cfg.early_stop.worst))
    return state
