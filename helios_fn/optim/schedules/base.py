"""What a schedule is: a function of the number of updates applied so far, and nothing else.

The count is a Python integer, or, in a compiled region and under ``torch.func`` transforms, a 0-d integer
tensor. A tensor is made float64 before a formula sees it, so that ``count / steps`` and ``factor ** count`` are
the arithmetic of Python's floats (of an int64 tensor torch would make float32), and `select` stands for branches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias, overload

import torch

from ...errors import NotTraceable
from ..checks import number
from ..text import brief, call, stable

Value: TypeAlias = float | torch.Tensor
"""A rate: a Python float, or where the count is a tensor a 0-d tensor of float64."""

Rate: TypeAlias = float | Callable[[Any], Any]
"""A learning rate: a number, or any function from the update count to a number.

In a compiled region and under ``vmap`` the function is called with the count as a 0-d float64 tensor and may return
a tensor. Arithmetic is the same for both (``lambda count: 1e-3 * 0.99**count``); where it branches on the count
it must write ``torch.where``.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A pure, total function of the update count: ``schedule(count) -> float`` for every ``count >= 0``.

    Of a 0-d integer tensor it makes a 0-d float64 tensor by tensor operations, so that it can be compiled and
    mapped; the value equals the float to rounding. Two are equal when they were made by the same call, and
    ``repr`` is that call.
    """

    name: str
    arguments: dict[str, Any]
    formula: Callable[[Any], Any] = dataclasses.field(compare=False)

    @overload
    def __call__(self, count: int, /) -> float: ...
    @overload
    def __call__(self, count: torch.Tensor, /) -> torch.Tensor: ...
    def __call__(self, count: Any, /) -> Any:
        """The value for the update that follows ``count`` updates.

        Raises:
            ValueError: ``count`` is a negative integer. The values of tensors are not looked at.
        """
        if isinstance(count, torch.Tensor):
            count = count.to(torch.float64)
            return double(self.formula(count), count)
        if count < 0:
            raise ValueError(f"a schedule is a function of the updates applied so far, got {count}")
        return self.formula(count)

    def __repr__(self) -> str:
        return call(self.name, self.arguments)


def select(condition: Any, first: Callable[[], Value], second: Callable[[], Value]) -> Value:
    """``first()`` where the condition holds, else ``second()``: a branch, or of a tensor ``torch.where``."""
    if not isinstance(condition, torch.Tensor):
        return first() if condition else second()
    return torch.where(condition, double(first(), condition), double(second(), condition))


def double(value: Any, like: torch.Tensor) -> torch.Tensor:
    """``value`` as a float64 tensor, 0-d on the device of ``like`` if it is a number."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64)
    return torch.full((), value, dtype=torch.float64, device=like.device)


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


@overload
def rate_at(lr: Rate, count: int) -> float: ...
@overload
def rate_at(lr: Rate, count: torch.Tensor) -> Value: ...
def rate_at(lr: Any, count: Any) -> Any:
    """The rate of the update that follows ``count`` updates.

    A number is returned as it is. A function gives a float for an ``int``, and for a tensor a float64 tensor, whose
    value nobody checks.

    Raises:
        ValueError: a schedule returned NaN or an infinity.
        NotTraceable: a schedule branches on the count under ``vmap``.
    """
    if not callable(lr):
        return lr
    if isinstance(count, torch.Tensor):
        return double(_of_tensor(lr, count.to(torch.float64)), count)
    value = float(lr(count))
    if not math.isfinite(value):
        raise ValueError(f"the schedule {stable(lr)} returned {value} at count {count}: a rate must be finite")
    return value


@overload
def last_rate(lr: Rate, count: int) -> float: ...
@overload
def last_rate(lr: Rate, count: torch.Tensor) -> Value: ...
def last_rate(lr: Any, count: Any) -> Any:
    """The rate that the last of ``count`` updates used, or that the first one will use."""
    if isinstance(count, torch.Tensor):
        return rate_at(lr, (count - 1).clamp(min=0))
    return rate_at(lr, max(count - 1, 0))


def _of_tensor(lr: Callable[[Any], Any], count: torch.Tensor) -> Any:
    if torch.compiler.is_compiling():
        return lr(count)  # the compiler names the line at fault by itself
    try:
        return lr(count)
    except RuntimeError as error:
        if not str(error).startswith("vmap:"):
            raise
        raise NotTraceable(
            f"the schedule {stable(lr)} reads the value of the count, which is unknown under vmap and compile: write "
            "torch.where(count < n, first, second) for a branch, torch.minimum and torch.cos for min and math.cos, "
            "or build it from hf.schedules"
        ) from error
