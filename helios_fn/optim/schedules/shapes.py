"""The elementary shapes: constant, straight, cosine, steps, polynomial, exponential."""

from __future__ import annotations

import math

import torch

from ..checks import number, positive, whole
from .base import Schedule, Value, select


def constant(value: float) -> Schedule:
    """``value`` at every count."""
    value = number("value", value)
    return Schedule("constant", {"value": value}, lambda count: value)


def linear(start: float, end: float, steps: int) -> Schedule:
    """A straight line from ``start`` at count 0 to ``end`` at ``steps``, and ``end`` from there on.

    Equals ``torch.optim.lr_scheduler.LinearLR`` with ``start_factor=start / base`` and
    ``end_factor=end / base``.

    Example:
        >>> rate = hf.schedules.linear(1.0, 0.0, 4)
        >>> [rate(count) for count in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    start, end, steps = number("start", start), number("end", end), whole("steps", steps)

    def value(count: Value) -> Value:
        return select(count >= steps, lambda: end, lambda: start + (end - start) * (count / steps))

    return Schedule("linear", {"start": start, "end": end, "steps": steps}, value)


def linear_warmup(peak: float, steps: int, start: float = 0.0) -> Schedule:
    """A straight rise from ``start`` at count 0 to ``peak`` at ``steps``, and ``peak`` from there on."""
    return linear(start, peak, steps)


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """Half a cosine from ``start`` at count 0 to ``end`` at ``steps``, and ``end`` from there on.

    Equals ``torch.optim.lr_scheduler.CosineAnnealingLR`` up to ``T_max``, after which that one rises
    again. From [Loshchilov and Hutter](https://arxiv.org/abs/1608.03983).

    Example:
        >>> rate = hf.schedules.cosine(1.0, steps=2)
        >>> [round(rate(count), 6) for count in (0, 1, 2, 100)]
        [1.0, 0.5, 0.0, 0.0]
        >>> rate
        cosine(start=1.0, steps=2, end=0.0)
    """
    start, end, steps = number("start", start), number("end", end), whole("steps", steps)

    def value(count: Value) -> Value:
        return select(count >= steps, lambda: end, lambda: half_cosine(start, end, count / steps))

    return Schedule("cosine", {"start": start, "steps": steps, "end": end}, value)


def step_decay(start: float, every: int, factor: float = 0.1) -> Schedule:
    """``start``, multiplied by ``factor`` (in (0, 1]) after each ``every`` updates.

    Equals ``torch.optim.lr_scheduler.StepLR``.

    Example:
        >>> rate = hf.schedules.step_decay(1.0, every=2, factor=0.5)
        >>> [rate(count) for count in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    start, every, factor = number("start", start), whole("every", every), _decay("factor", factor)
    return Schedule(
        "step_decay",
        {"start": start, "every": every, "factor": factor},
        lambda count: start * factor ** (count // every),
    )


def polynomial(start: float, steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """``end + (start - end) * (1 - count / steps) ** power`` up to ``steps``, and ``end`` from there on.

    Equals ``torch.optim.lr_scheduler.PolynomialLR``, whose end is 0.
    """
    start, end = number("start", start), number("end", end)
    steps, power = whole("steps", steps), positive("power", power)

    def value(count: Value) -> Value:
        return select(count >= steps, lambda: end, lambda: end + (start - end) * (1.0 - count / steps) ** power)

    return Schedule("polynomial", {"start": start, "steps": steps, "power": power, "end": end}, value)


def exponential(start: float, factor: float, end: float | None = None) -> Schedule:
    """``start * factor ** count``, and ``end`` from where that would pass ``end``.

    Equals ``torch.optim.lr_scheduler.ExponentialLR``. A ``factor`` above 1 grows, as in a search for
    the largest stable rate, and needs an ``end``.

    Raises:
        ValueError: ``factor`` moves away from ``end``, or grows without one.
    """
    start, factor = positive("start", start), positive("factor", factor)
    if end is None:
        factor = _decay("factor", factor, ": growth needs an end")
        return Schedule("exponential", {"start": start, "factor": factor}, lambda count: start * factor**count)
    end = positive("end", end)
    if (end - start) * (factor - 1.0) < 0:
        raise ValueError(f"a factor of {factor:g} never leads from start={start:g} to end={end:g}")
    bound = math.inf if factor == 1.0 else math.log(end / start) / math.log(factor)

    def value(count: Value) -> Value:
        # Compared before the power is taken: a growing one would overflow at large counts.
        return select(count >= bound, lambda: end, lambda: start * factor**count)

    return Schedule("exponential", {"start": start, "factor": factor, "end": end}, value)


def half_cosine(start: float, end: float, progress: Value) -> Value:
    """From ``start`` at progress 0 to ``end`` at 1."""
    angle = math.pi * progress
    fall = torch.cos(angle) if isinstance(angle, torch.Tensor) else math.cos(angle)
    return end + (start - end) * (1.0 + fall) / 2.0


def _decay(name: str, value: float, advice: str = "") -> float:
    if positive(name, value) > 1:
        raise ValueError(f"{name} must be at most 1, got {value!r}{advice}")
    return float(value)
