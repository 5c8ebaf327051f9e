"""The learning-rate range test: how the loss behaves while the rate grows, on a branch that leaves no trace."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Generator
from typing import Any

from .. import tree
from ..config import RunConfig
from ..optim.schedules import exponential
from ..state import TrainState
from ..types import Counters, Cursor, Reason, Result, Step, Validation
from .border import check_step
from .run import iterate

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class RateTest:
    """What `find_learning_rate` found; ``print`` it to see the curve.

    Attributes:
        rates: the learning rate of each iteration.
        losses: the loss of each, before its update.
        smoothed: their exponential mean, corrected for its beginning.
        suggestion: the rate where the smoothed loss falls most steeply (by the logarithm of the rate) before its lowest
            point; ``None`` where it never falls.
        diverged: whether the test ended early, for the loss rose or was not finite.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    diverged: bool

    def __str__(self) -> str:
        finite = [loss for loss in self.smoothed if math.isfinite(loss)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        lines = [_curve(self.smoothed, low, high), f"{'rate':>10}  {'loss':>10}  {'smoothed':>10}"]
        every = -(-len(self.rates) // _SHOWN)
        for index, (rate, loss, smooth) in enumerate(zip(self.rates, self.losses, self.smoothed, strict=True)):
            if index % every == 0 or rate == self.suggestion or index == len(self.rates) - 1:
                mark = "  <- steepest" if rate == self.suggestion else ""
                lines.append(f"{rate:>10.3g}  {loss:>10.4g}  {smooth:>10.4g}{mark}")
        end = f"diverged at {self.rates[-1]:.3g}" if self.diverged else f"up to {self.rates[-1]:.3g}"
        advice = "no rate lowers the loss" if self.suggestion is None else f"suggestion: {self.suggestion:.3g}"
        return "\n".join([*lines, f"{advice} ({len(self.rates)} iterations, {end})"])


def find_learning_rate(
    make: Callable[[Any], Step],
    init_state: TrainState | Callable[[], TrainState],
    loader: Any,
    *,
    iterations: int = 100,
    lo: float = 1e-7,
    hi: float = 10.0,
    loss: str = "loss",
    smoothing: float = 0.9,
    diverges: float = 3.0,
    micro_batches: int | None = None,
    device: Any = None,
) -> RateTest:
    """Train a branch of the state with a rate that grows from ``lo`` to ``hi``, and tell how the loss behaves.

        print(hf.find_learning_rate(lambda lr: hf.make_step(loss_fn, hf.optim.adamw(lr)), state, loader))

    The rate grows by one factor in each iteration, from the state's parameters and the loader's first batch on, with
    a fresh optimiser. The branch is thrown away; state, loader and every later run have the bits that they have
    without the test. Several processes share the batches as in a run, and find the same. A signal ends the test, and
    has its ordinary effect then.

    The method is the range test of [Smith 2017](https://arxiv.org/abs/1506.01186), with rates on a logarithmic scale.

    Args:
        make: ``make(lr) -> step``, where ``lr`` is a schedule, a function of the update count. A step that `make_step`
            did not make takes ``state.opt_state`` as it is, which must have counted no update yet.
        init_state: as for `run`.
        loader: as for `run`.
        iterations: how many, if the loss does not diverge before.
        lo: the first rate.
        hi: the last rate.
        loss: the name of the loss in ``state.metrics``.
        smoothing: how much of the mean before is kept in the next one.
        diverges: the test ends when the smoothed loss is above its lowest value by this many times the first loss.
        micro_batches: per iteration, over all processes, as in `RunConfig`.
        device: as in `RunConfig`.

    Raises:
        TypeError: ``make`` is no function, or returns no step.
        ValueError: a number is out of range, or the step uses other rates than it was given.
        RunFailed: the step or the loader raised.
    """
    _check(make, iterations, lo, hi, smoothing, diverges)
    factor = (hi / lo) ** (1.0 / max(iterations - 1, 1))
    schedule = exponential(lo, factor, hi)
    step = make(schedule)
    check_step(step)
    state = _branch(init_state() if callable(init_state) else init_state, step)
    cfg = RunConfig(
        unit="iteration",
        total=iterations,
        micro_batches=micro_batches,
        log_every=None,
        non_finite="stop",
        progress=False,
        device=device,
    )
    found, ended = _Curve(smoothing, diverges), list[Result]()
    with contextlib.closing(_told(iterate(step, state, loader, cfg), ended)) as states:
        for count, new in enumerate(states):
            rate = float(schedule(_updates_before(step, new, count)))
            _check_rate(new.metrics, rate, loss)
            if found.add(rate, float(new.metrics[loss])):
                break
    if ended and ended[0].reason is Reason.SIGNAL:
        # Nobody sees this reason, and what follows is mostly the training that somebody has just interrupted.
        signal.raise_signal(signal.Signals[ended[0].message])
    return found.result()


def _told(states: Generator[TrainState, None, Result], ended: list[Result]) -> Generator[TrainState, None, None]:
    """The same states, with the result put into ``ended``."""
    ended.append((yield from states))


class _Curve:
    """The losses so far."""

    def __init__(self, smoothing: float, diverges: float) -> None:
        self._smoothing, self._diverges = smoothing, diverges
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._diverged = False

    def add(self, rate: float, loss: float) -> bool:
        """Append a point; whether the loss diverges there."""
        self._rates.append(rate)
        self._losses.append(loss)
        # The exponential mean divided by the sum of its weights; in this form that of equal losses is exact.
        share = (1.0 - self._smoothing) / (1.0 - self._smoothing ** len(self._losses))
        before = self._smoothed[-1] if self._smoothed else 0.0
        smooth = before + share * (loss - before)
        self._smoothed.append(smooth)
        bound = min(self._smoothed) + self._diverges * abs(self._losses[0])
        self._diverged = not math.isfinite(smooth) or smooth > bound
        return self._diverged

    def result(self) -> RateTest:
        """All of it, with the suggestion."""
        return RateTest(
            tuple(self._rates),
            tuple(self._losses),
            tuple(self._smoothed),
            _steepest(self._rates, self._smoothed),
            self._diverged,
        )


def _steepest(rates: list[float], smoothed: list[float]) -> float | None:
    """The rate of the steepest descent, by central differences over equal steps of the logarithm."""
    finite = [loss for loss in smoothed if math.isfinite(loss)]
    lowest = min(range(len(finite)), key=finite.__getitem__, default=0)
    slopes = {index: finite[index + 1] - finite[index - 1] for index in range(1, min(lowest + 1, len(finite) - 1))}
    best = min(slopes, key=slopes.__getitem__, default=None)
    return rates[best] if best is not None and slopes[best] < 0 else None


def _branch(state: Any, step: Any) -> Any:
    """The state as if nothing had been trained yet, with a fresh memory where the step's optimiser is known."""
    if type(state) is not TrainState:
        return state  # for `iterate` to refuse
    optimizer = getattr(step, "optimizer", None)
    return state.replace(
        opt_state=state.opt_state if optimizer is None else optimizer.init(state.params),
        cursor=Cursor(),
        counters=Counters(),
        validation=Validation(metrics={}),
        metrics={},
        first_bad=state.first_bad.new_full((), -1),
    )


def _updates_before(step: Any, state: TrainState, iterations: int) -> int:
    """What the rate of the last update was a function of: where updates are left out, not the number of iterations."""
    optimizer = getattr(step, "optimizer", None)
    return iterations if optimizer is None else max(int(optimizer.count(state.opt_state)) - 1, 0)


def _check(make: Any, iterations: Any, lo: Any, hi: Any, smoothing: Any, diverges: Any) -> None:
    if not callable(make) or isinstance(make, type):
        raise TypeError(
            f"make must be a function of the rate that returns a step, got {tree.describe(make)}: write "
            "lambda lr: hf.make_step(loss_fn, hf.optim.adamw(lr))"
        )
    if type(iterations) is not int or iterations < 3:
        raise ValueError(f"iterations must be an integer of at least 3, got {iterations!r}")
    if not 0 < lo < hi < math.inf:
        raise ValueError(f"rates must grow from lo > 0 to a finite hi, got lo={lo!r} and hi={hi!r}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing!r}")
    if not diverges > 0:
        raise ValueError(f"diverges must be positive, got {diverges!r}")


def _check_rate(metrics: Any, rate: float, loss: str) -> None:
    if loss not in metrics:
        raise ValueError(f"the step wrote no metric {loss!r} but {', '.join(sorted(metrics)) or 'none'}: name its loss")
    used = metrics.get("learning_rate")
    if used is not None and not math.isclose(float(used), rate, rel_tol=1e-5):
        raise ValueError(
            f"the step used the learning rate {float(used):g} where it was given {rate:g}: make(lr) must hand lr "
            "itself to the optimiser"
        )


def _curve(values: tuple[float, ...], low: float, high: float) -> str:
    span = (high - low) or 1.0
    return "".join(
        _BARS[round((value - low) / span * (len(_BARS) - 1))] if math.isfinite(value) else "!" for value in values
    )
