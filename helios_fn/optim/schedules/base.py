"""What a schedule is: a function of the number of updates applied so far, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from ..checks import number
from ..text import call, stable

Rate: TypeAlias = float | Callable[[int], float]
"""A learning rate: a number, or any function from the update count to a number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A pure, total function of the update count: ``schedule(count) -> float`` for every ``count >= 0``.

    Two are equal when they were made by the same call, and ``repr`` is that call.
    """

    name: str
    arguments: dict[str, Any]
    formula: Callable[[int], float] = dataclasses.field(compare=False)

    def __call__(self, count: int, /) -> float:
        """The value for the update that follows ``count`` updates."""
        if count < 0:
            raise ValueError(f"a schedule is a function of the updates applied so far, got {count}")
        return self.formula(count)

    def __repr__(self) -> str:
        return call(self.name, self.arguments)


def checked_rate(lr: Any) -> Rate:
    """``lr`` as an optimiser's factory accepts it.

    Raises:
        TypeError: it is neither a number nor callable.
        ValueError: it is a number, but negative or not finite.
    """
    if callable(lr):
        return lr
    if not isinstance(lr, int | float):
        raise TypeError(f"lr must be a number or a schedule (a function of the update count), got {stable(lr)}")
    return number("lr", lr, low=0.0)


def rate_at(lr: Rate, count: int) -> float:
    """The rate of the update that follows ``count`` updates.

    Raises:
        ValueError: a schedule returned NaN or an infinity.
    """
    if not callable(lr):
        return lr
    value = float(lr(count))
    if not math.isfinite(value):
        raise ValueError(f"the schedule {stable(lr)} returned {value} at count {count}: a rate must be finite")
    return value


def last_rate(lr: Rate, count: int) -> float:
    """The rate that the last of ``count`` updates used, or that the first one will use."""
    return rate_at(lr, max(count - 1, 0))
