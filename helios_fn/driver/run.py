"""The driver's front: check the border, open the surroundings, run the loop, close everything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from .. import schedule, tree
from ..config import RunConfig
from ..data import Phases, as_source
from ..distributed import World, connect, opened
from ..distributed.logs import logs_of_rank
from ..dtensors import any_sharded
from ..errors import PurityError
from ..frames import border, focused
from ..sinks import Progress
from ..state import TrainState
from ..types import Json, Observer, Result, RunInfo, Sink, Step
from .amount import in_units, limited_source, limited_validation
from .border import check_combination, check_step, checked_record, checked_state
from .donation import Donation
from .evaluate import Validator
from .failure import end_saving, leave_others, run_failed, save_after
from .folder import RunFolder, Start
from .guard import PurityGuard
from .loop import Loop, ShouldStop, Surroundings, Validate
from .outlets import Outlets
from .passing import PassThrough, checked_types
from .record import environment, geometry
from .sanity import try_validation
from .sharded import ShardedFolder
from .signals import StopSignal
from .timer import Clock, Timer
from .together import SharedFolder

_LOGGER = logging.getLogger("helios_fn")


@border
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
    record: Mapping[str, Json] | None = None,
    clock: Clock = time.monotonic,
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
        record: facts of one's own, plain JSON, that each checkpoint's manifest is to hold, beside those of the run.
        clock: the seconds that ``max_time`` and ``checkpoint_every_seconds`` count; replaced in tests.

    Raises:
        ValueError: the arguments contradict each other; nothing has been written.
        CheckpointError: the root cannot be used, or the wanted checkpoint does not exist.
        ResumeRefused: the newest checkpoint belongs to another run.
        RunFailed: step, loader, validation or an observer raised; the last complete state is saved.

    Example:
        >>> def step(state, batch):
        ...     return state.replace(params={"sum": state.params["sum"] + batch.sum()})
        ...
        >>> cfg = hf.RunConfig(unit="epoch", total=2, progress=False)
        >>> result = hf.run(step, hf.init_state({"sum": torch.tensor(0)}), hf.Loader(torch.arange(10), 4), cfg)
        >>> result.state.params["sum"].item(), result.state.counters, result.reason.value
        (90, Counters(iteration=6, micro_step=6), 'the total was reached')
    """
    states = _states(
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
        record=record,
        clock=clock,
        shown=False,
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
    record: Mapping[str, Json] | None = None,
    clock: Clock = time.monotonic,
) -> Generator[TrainState, None, Result]:
    """The same loop as `run`, as a generator: yields the state after each iteration.

    For people who keep their own loop. Leaving it early saves the last state, as `run` does at its
    end. After a rollback, iterations come again. The generator's return value is the `Result`. Arguments
    and errors are those of `run`. With ``donate=True`` a state is good until the next one is asked for.

    Example:
        >>> def step(state, batch):
        ...     return state.replace(params={"sum": state.params["sum"] + batch.sum()})
        ...
        >>> cfg = hf.RunConfig(unit="iteration", total=3, progress=False)
        >>> loader = hf.Loader(torch.arange(6), 2, shuffle=False)
        >>> start = hf.init_state({"sum": torch.tensor(0)})
        >>> [state.params["sum"].item() for state in hf.iterate(step, start, loader, cfg)]
        [1, 6, 15]
    """
    return _states(
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
        record=record,
        clock=clock,
        shown=True,
    )


def _states(
    step: Step,
    init_state: TrainState | Callable[[], TrainState],
    loader: Any,
    cfg: RunConfig,
    *,
    validate: Validate | None,
    sinks: Iterable[Sink],
    observers: Iterable[Observer],
    should_stop: ShouldStop | None,
    pass_through: Iterable[type[BaseException]],
    checkpoint_metadata: Callable[[TrainState], str] | None,
    record: Mapping[str, Json] | None,
    clock: Clock,
    shown: bool,
) -> Generator[TrainState, None, Result]:
    """What `run` and `iterate` share; ``shown`` says whether somebody sees the states."""
    timer = Timer(cfg, clock)
    check_step(step)
    source = as_source(loader)
    joined = connect(cfg.seconds("collective_timeout"))
    share = schedule.share_of(cfg, joined.rank, joined.size)
    check_combination(cfg, source, validate, should_stop)
    source, validate = limited_source(source, cfg), limited_validation(validate, cfg)
    cfg = in_units(cfg, source, share)
    fresh = checked_state(init_state() if callable(init_state) else init_state, cfg)
    facts: dict[str, Json] = {
        **checked_record(record),
        "geometry": geometry(cfg, share, source.describe(), fresh, validate),
        "environment": environment(cfg, step),
        "processes": share.world,
    }
    progress = [Progress()] if cfg.progress and joined.is_main else []
    outlets = Outlets(sinks, [*progress, *observers], writes=joined.is_main)
    if cfg.fingerprint_every is not None and joined.is_main and not outlets.keeps_fingerprints:
        _LOGGER.warning("fingerprint_every is set, but no sink keeps fingerprints: pass sinks=[hf.sinks.JsonLines()]")
    around = Surroundings(
        step=PurityGuard(step, cfg.purity_checks),
        donation=Donation(cfg, step, shown=shown or should_stop is not None or outlets.shows_states),
        source=source,
        cfg=cfg,
        share=share,
        folder=RunFolder(cfg, facts, checkpoint_metadata),
        outlets=outlets,
        world=joined,
        signal=StopSignal(),
        timer=timer,
        validate=validate,
        should_stop=should_stop,
    )
    return _drive(around, [fresh], checked_types(pass_through))


def _drive(
    around: Surroundings, initial: list[TrainState], pass_through: PassThrough
) -> Generator[TrainState, None, Result]:
    """Everything around the loop: open, start, train, save the last state, close.

    ``initial`` is a list so that it can be emptied: nobody is to hold a state that training has left.
    """
    with ExitStack() as stack:
        world = stack.enter_context(opened(around.cfg.seconds("collective_timeout")))
        around = _among_others(around, world, initial[0])
        stack.enter_context(logs_of_rank(world.rank, world.size))
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
            loop.world.note("left", f"left the run after iteration {loop.complete.counters.iteration}")
            loop.world.leave()
            _save_last(loop)
            _tell_of_failure(loop)
            raise
        except BaseException as raised:
            error = leave_others(raised, loop)
            decisive = error if around.signal.aborted else end_saving(error, loop)
            failed = save_after(decisive, loop) if isinstance(error, Exception) else None
            _tell_of_failure(loop)
            if isinstance(error, pass_through) or not isinstance(error, Exception):
                raise
            raise run_failed(error, loop, failed) from focused(error)


def _among_others(around: Surroundings, world: World, state: TrainState) -> Surroundings:
    if world.size == 1:
        return around
    assert isinstance(around.folder, RunFolder)
    if around.cfg.fingerprint_every is not None:
        # Sinks may be handed to rank 0 alone, but digests are taken by all processes or by none.
        around.outlets.keeps_fingerprints = bool(world.tell_all(around.outlets.keeps_fingerprints))
    folder: SharedFolder | ShardedFolder = SharedFolder(around.folder, world)
    if any_sharded(tree.leaves(state)):
        folder = ShardedFolder(around.folder.over(world), world, around.cfg)
    return around._replace(world=world, folder=folder)


def _lead(loop: Loop, info: RunInfo) -> Generator[TrainState, None, Result]:
    """A run from its start to its good end."""
    loop.outlets.emit("on_start", info, loop.state)
    try_validation(loop)
    if loop.saving.saved_at < 0:
        loop.save()
        loop.hear()  # there is always something to go back to, and no thread while loaders fork their workers
    reason = yield from loop.train()
    loop.doing = ("the end after", 0)
    _save_last(loop)
    loop.agreement.end()
    loop.world.barrier()  # when any process returns, the last state is on disk
    loop.ended = True
    loop.outlets.emit("on_end", loop.state, reason)
    loop.outlets.close()
    return Result(loop.state, reason, loop.message)


def _save_last(loop: Loop) -> None:
    """Leave the last state on disk, also where the save before it failed; that failure is raised then."""
    try:
        loop.hear()
    except PurityError:
        raise
    except Exception:
        _save_unsaved(loop)
        raise
    _save_unsaved(loop)


def _save_unsaved(loop: Loop) -> None:
    if loop.saving.saved_at != loop.complete.counters.iteration and int(loop.complete.first_bad) < 0:
        loop.save()
        loop.hear()


def _tell_of_failure(loop: Loop) -> None:
    """Let observers and sinks end; what they raise must not hide the failure itself."""

    def end_observers() -> None:
        if not loop.ended:
            loop.outlets.emit("on_end", loop.complete, None)

    for ending in (end_observers, loop.outlets.close):
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
        total=around.cfg.units,
        micro_batches=around.share.micro_batches,
        batches_per_epoch=phase.batches_per_epoch,
        start_iteration=start.state.counters.iteration,
        start_epoch=start.state.cursor.epoch,
        start_batch=start.state.cursor.batch,
        log_dir=start.log_dir,
        superseded=start.superseded,
        rank=around.world.rank,
        processes=around.world.size,
    )
