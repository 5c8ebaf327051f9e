"""torch's learning rate schedulers as schedules: run once, kept as a table."""

from __future__ import annotations

import hashlib
import inspect
import struct
from collections.abc import Callable
from typing import Any

import torch

from ..checks import number, whole
from ..text import brief
from .base import Schedule, Value

_MOMENTUM, _BETAS = 0.9, (0.9, 0.999)


def from_torch(scheduler: Callable[..., Any], /, *args: Any, base_lr: float, steps: int, **kwargs: Any) -> Schedule:
    """The rates of a ``torch.optim.lr_scheduler`` class, found by running it for ``steps`` steps.

        from_torch(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=1000, cycle_momentum=False,
                   base_lr=0.1, steps=1000)

    Args:
        scheduler: the class, or any function that is called with an optimiser, ``args`` and ``kwargs``
            and returns a scheduler: so that schedulers made of others (``SequentialLR``,
            ``ChainedScheduler``) can be built on the one optimiser.
        base_lr: the optimiser's rate before the scheduler is made.
        steps: the length of the table: the counts 0 to ``steps - 1``. From there on the last value
            holds, so make the table as long as the training.

    The values are torch's own, bit for bit. ``repr`` carries a digest of them.

    Raises:
        TypeError: ``scheduler`` makes something else, or its ``step`` needs to be told a metric
            (``ReduceLROnPlateau``): its rate is no function of the update count.
        ValueError: it changes more than the rate (``cycle_momentum=True``).
    """
    if not callable(scheduler):
        raise TypeError(f"from_torch needs a scheduler class or a function that makes one, but got {brief(scheduler)}")
    optimizer = _Bystander(number("base_lr", base_lr, low=0.0))
    table = _tabulate(scheduler(optimizer, *args, **kwargs), optimizer, whole("steps", steps))
    arguments = {
        "scheduler": scheduler,
        **({"args": args} if args else {}),
        **kwargs,
        "base_lr": base_lr,
        "steps": steps,
        "digest": hashlib.sha256(struct.pack(f"<{len(table)}d", *table)).hexdigest()[:12],
    }
    rows = torch.tensor(table, dtype=torch.float64, device="cpu")

    def value(count: Any) -> Value:
        if not isinstance(count, torch.Tensor):
            return table[min(count, len(table) - 1)]
        index = count.clamp(max=len(table) - 1).to(torch.int64)
        # Not rows[index]: that reads a 0-d index on the host.
        return rows.to(count.device).index_select(0, index.reshape(1)).reshape(())

    return Schedule("from_torch", arguments, value)


class _Bystander(torch.optim.Optimizer):
    """An optimiser that does nothing, for a scheduler to act upon."""

    def __init__(self, lr: float) -> None:
        super().__init__([torch.zeros(())], {"lr": lr, "momentum": _MOMENTUM, "betas": _BETAS})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass

    def rate(self) -> float:
        group = self.param_groups[0]
        if (group["momentum"], group["betas"]) != (_MOMENTUM, _BETAS):
            raise ValueError(
                "the scheduler changes the momentum too, which a schedule of the rate cannot carry: "
                "pass cycle_momentum=False"
            )
        return float(group["lr"])


def _tabulate(scheduler: Any, optimizer: _Bystander, steps: int) -> tuple[float, ...]:
    _refuse_metrics(scheduler)
    table = [optimizer.rate()]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        table.append(optimizer.rate())
    return tuple(table)


def _refuse_metrics(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if not callable(getattr(scheduler, "step", None)):
        raise TypeError(f"from_torch needs a scheduler class or a function that makes one, but got {name}")
    parameters = inspect.signature(scheduler.step).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise TypeError(
            f"{name}.step needs {', '.join(needed)}, so its rate is no function of the update count and cannot be "
            "tabulated: keep the factor as a leaf in state.extra, let your step compute it from state.validation, "
            "and scale the gradients or updates by it"
        )
