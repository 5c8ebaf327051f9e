"""The laws as functions: call them on your own step, loader and configuration, in your own tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import random, tree
from ..config import RunConfig
from ..driver.guard import PurityGuard
from ..errors import PurityError
from ..state import TrainState
from .compare import assert_same_run
from .interrupt import Stop, Stops, schedules, spread, usual_stops
from .trace import Job, Trace, run_with
from .verdicts import JobFailed, LawBroken


def check_step(
    step: Callable[[Any, Any], Any],
    state: TrainState,
    batch: Any,
    *,
    expect_updates: bool = False,
    except_for: Sequence[str] = (),
) -> TrainState:
    """Check that a step is pure and deterministic on one batch, and return the state it gives.

    The law of purity: ``step`` twice on the same input gives the same bits, leaves the input
    untouched, draws from no global generator, and keeps structure, shapes and dtypes.

    Args:
        step: as for `helios_fn.run`.
        state: any state to start from.
        batch: what the step receives: a batch, or `helios_fn.MicroBatches`.
        expect_updates: also check that the step changes each parameter, which finds layers that are not
            connected to the loss. Weight decay moves those too: switch it off here. A rate that warms
            up from 0, and `helios_fn.optim.every`, change nothing in the first step: hand over a later state.
        except_for: names of parameters that may stay as they are, as ``state.params`` has them.

    Raises:
        PurityError, TypeError: the step breaks its contract; names the leaf and the remedy.
        LawBroken: two calls differ, the loss is not finite, or parameters did not change.
        ValueError: ``except_for`` names no parameter.

    Example:
        >>> from helios_fn.testing import check_step
        >>> def step(state, batch):
        ...     state.params["w"].add_(batch.sum())
        ...     return state
        ...
        >>> check_step(step, hf.init_state({"w": torch.zeros(1)}), torch.ones(2))
        Traceback (most recent call last):
            ...
        helios_fn.errors.PurityError: the step wrote to its input at params['w']: it must return...
    """
    guard = PurityGuard(step, full_checks=2)
    results = []
    with random.preserved_globals():
        for ambient in (1, 2):
            torch.manual_seed(ambient)
            results.append(guard(state, batch))
    differences = tree.diff(*results)
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences[:8])
        raise LawBroken(f"two calls of the step on the same input differ in {len(differences)} leaves:\n{shown}")
    for name, value in results[0].metrics.items():
        if name.endswith("loss") and value.is_floating_point() and not bool(value.isfinite()):
            raise LawBroken(f"metrics[{name!r}] is {value.item()} after one step")
    if expect_updates:
        _check_updates(state.params, results[0].params, except_for)
    return results[0]


def _check_updates(before: Any, after: Any, except_for: Sequence[str]) -> None:
    names = [path.removeprefix("['").removesuffix("']") for path in tree.paths(before)]
    unknown = [name for name in except_for if name not in names]
    if unknown:
        raise ValueError(f"except_for names {unknown}, but the parameters are {names}")
    pairs = zip(names, tree.leaves(before), tree.leaves(after), strict=True)
    still = [name for name, old, new in pairs if name not in except_for and tree.equal(old, new)]
    if still and len(still) == len(names):
        raise LawBroken("the step changed no parameter: is the learning rate 0, or the first update still to come?")
    if still:
        raise LawBroken(
            f"the step did not change {len(still)} of {len(names)} parameters: {', '.join(still)}. Is the loss "
            "independent of them? If they are meant to stay as they are, name them in except_for"
        )


def check_resume(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    stops: Stops | None = None,
    **run_keywords: Any,
) -> None:
    """Check that a run stopped anywhere and resumed equals the run that never stopped, bit for bit.

    The law of resumption, over final state, batches, log rows and reason. Runs in temporary folders;
    ``cfg.root`` is not touched. All parts of a run share this process, so what a job keeps in it is not
    lost between them and goes unnoticed: `check_resume_processes` is stricter, and slower.

    Args:
        step: as for `helios_fn.run`.
        state: the initial state, or a function that makes it.
        loader: the loader, or a function that makes one.
        cfg: keep ``total`` small: the job runs once for each stop.
        stops: where to interrupt, one run for each entry: a `Stop`, an iteration (a crash after it), or
            several stops of one run. Default: a handful spread over the run, by crash, signal,
            leaving and error in turn, and one run interrupted at all of them.
        run_keywords: passed on to `helios_fn.run`.

    Raises:
        LawBroken: a resumed run differs, or fails; says where first, and the likely causes.
        JobFailed: the job fails without any interruption; its error is the cause.
        ValueError: a stop is outside the run.
    """
    job = Job(step, state, loader, cfg, run_keywords)
    whole = _whole(job)
    last = len(whole.batches)
    for schedule in _usual_schedules(last) if stops is None else schedules(stops, last):
        points = ", ".join(map(str, schedule))
        assert_same_run(
            whole, _resumed(job, schedule, points), f"a run resumed after {points} differs from one never stopped"
        )


def check_workers(
    step: Callable[[Any, Any], Any],
    state: Any,
    make_loader: Callable[[int], Any],
    cfg: RunConfig,
    *,
    workers: Sequence[int] = (0, 1, 2),
    **run_keywords: Any,
) -> None:
    """Check that the number of loader workers changes no bit, and may change when a run is resumed.

    Args:
        make_loader: ``make_loader(workers)`` makes the loader with that many workers.
        workers: the numbers to compare with the first of them.

    Raises:
        LawBroken: a run differs; says where first, and the likely causes.
        JobFailed: the job fails with the first number of workers.
    """
    first, *others = workers
    whole = _whole(Job(step, state, lambda: make_loader(first), cfg, run_keywords))
    for number in others:
        other = run_with(Job(step, state, lambda n=number: make_loader(n), cfg, run_keywords), [])
        assert_same_run(whole, other, f"a run with {number} workers differs from one with {first}")
    cycle = itertools.cycle(workers)
    changing = Job(step, state, lambda: make_loader(next(cycle)), cfg, run_keywords)
    stops = [Stop(at) for at in spread(len(whole.batches), most=len(workers))]
    assert_same_run(whole, run_with(changing, stops), "a run whose workers change on each resume differs")


def _whole(job: Job) -> Trace:
    try:
        return run_with(job, [])
    except Exception as error:
        if isinstance(error.__cause__, PurityError):
            raise LawBroken(f"the step is not pure: {error}") from error
        raise JobFailed(f"the job itself failed, without any interruption: {error}") from error


def _resumed(job: Job, stops: list[Stop], what: str) -> Trace:
    try:
        return run_with(job, stops)
    except Exception as error:
        raise LawBroken(
            f"a run interrupted by {what} fails when it is resumed; without it does not: {error}"
        ) from error


def _usual_schedules(last: int) -> list[list[Stop]]:
    single = usual_stops(last)
    return [[stop] for stop in single] + ([single] if len(single) > 1 else [])
