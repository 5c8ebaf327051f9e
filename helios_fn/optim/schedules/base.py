"""What a schedule is: a function of the number of updates applied so far, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ..checks import number
from ..text import brief, call, stable

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
        TypeError: it is neither a number nor callable, or a scheduler of torch.
        ValueError: it is a number, but negative or not finite.
    """
    refuse_scheduler(lr)
    if callable(lr):
        return lr
    if not isinstance(lr, int | float):
        raise TypeError(f"lr must be a number or a schedule (a function of the update count), got {brief(lr)}")
    return number("lr", lr, low=0.0)


def refuse_scheduler(lr: Any) -> None:
    """Refuse a scheduler of torch, class or instance: it acts on an optimiser and is no function.

    Raises:
        TypeError: it is one.
    """
    cls = lr if isinstance(lr, type) else type(lr)
    if issubclass(cls, torch.optim.lr_scheduler.LRScheduler):
        raise TypeError(
            f"lr is torch's {cls.__name__}, which is no function of the update count: write "
            f"hf.schedules.from_torch({cls.__name__}, ..., base_lr=..., steps=...)"
        )


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
