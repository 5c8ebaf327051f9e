"""The laws as functions: call them on your own step, loader and configuration, in your own tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import random, tree
from ..config import RunConfig
from ..driver.guard import PurityGuard
from ..state import TrainState
from .compare import LawBroken, assert_same_run
from .interrupt import Stop, spread
from .trace import Job, run_with


def check_step(step: Callable[[Any, Any], Any], state: TrainState, batch: Any) -> TrainState:
    """Check that a step is pure and deterministic on one batch, and return the state it gives.

    The law of purity: ``step`` twice on the same input gives the same bits, leaves the input
    untouched, draws from no global generator, and keeps structure, shapes and dtypes.

    Raises:
        PurityError, TypeError: the step breaks its contract; names the leaf and the remedy.
        LawBroken: two calls differ, or the loss is not finite.
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
        if value.is_floating_point() and not bool(value.isfinite()):
            raise LawBroken(f"metrics[{name!r}] is {value.item()} after one step")
    return results[0]


def check_resume(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    stops: Sequence[Stop | int | Sequence[Stop]] | None = None,
    **run_keywords: Any,
) -> None:
    """Check that a run stopped anywhere and resumed equals the run that never stopped, bit for bit.

    The law of resumption, over final state, batches, log rows and reason. Runs in temporary folders;
    ``cfg.root`` is not touched.

    Args:
        step: as for `helios_fn.run`.
        state: the initial state, or a function that makes it.
        loader: the loader, or a function that makes one.
        cfg: keep ``total`` small: the job runs once for each stop.
        stops: where to interrupt, one run for each entry: a `Stop`, an iteration (a crash after it), or
            several stops of one run. Default: a handful spread over the run, by crash, signal and
            leaving in turn, and one run interrupted at all of them.
        run_keywords: passed on to `helios_fn.run`.

    Raises:
        LawBroken: a resumed run differs; says where first, and the likely causes.
    """
    job = Job(step, state, loader, cfg, run_keywords)
    whole = run_with(job, [])
    for schedule in _schedules(stops, len(whole.batches)):
        points = ", ".join(f"{stop.kind} after iteration {stop.iteration}" for stop in schedule)
        assert_same_run(whole, run_with(job, schedule), f"a run resumed after {points} differs from one never stopped")


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
    """
    first, *others = workers
    whole = run_with(Job(step, state, lambda: make_loader(first), cfg, run_keywords), [])
    for number in others:
        other = run_with(Job(step, state, lambda n=number: make_loader(n), cfg, run_keywords), [])
        assert_same_run(whole, other, f"a run with {number} workers differs from one with {first}")
    cycle = itertools.cycle(workers)
    changing = Job(step, state, lambda: make_loader(next(cycle)), cfg, run_keywords)
    stops = [Stop(at) for at in spread(len(whole.batches), most=len(workers))]
    assert_same_run(whole, run_with(changing, stops), "a run whose workers change on each resume differs")


def _schedules(stops: Sequence[Stop | int | Sequence[Stop]] | None, iterations: int) -> list[list[Stop]]:
    if stops is not None:
        return [_as_schedule(each) for each in stops]
    kinds = ("crash", "signal", "leave")
    single = [Stop(at, kinds[i % 3]) for i, at in enumerate(spread(iterations))]  # type: ignore[arg-type]
    return [[stop] for stop in single] + ([single] if len(single) > 1 else [])


def _as_schedule(stop: Stop | int | Sequence[Stop]) -> list[Stop]:
    if isinstance(stop, int):
        return [Stop(stop)]
    return [stop] if isinstance(stop, Stop) else [*stop]
