"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.optim.sgd import sgd as _kernels

from .base import Optimizer
from .checks import choice, flag, number
from .native import Mode, native
from .schedules.base import Rate, checked_rate
from .tensors import clone
from .text import call


def sgd(
    lr: Rate = 1e-3,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    mode: Mode = "fused",
) -> Optimizer:
    """SGD, bit for bit ``torch.optim.SGD`` in the same mode.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        momentum: the decay of the velocity, ``velocity = momentum * velocity + (1 - dampening) * grad``.
            As in torch, the first update takes the gradient for the velocity, undamped.
        dampening: see ``momentum``.
        weight_decay: an L2 penalty, added to the gradient.
        nesterov: look ahead along the velocity, from
            [Sutskever et al.](https://proceedings.mlr.press/v28/sutskever13.html)
        maximize: ascend.
        mode: ``"fused"``, ``"foreach"`` or ``"loop"``, part of the numeric contract, see `helios_fn.optim.native`.

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range, or ``nesterov`` without momentum or with dampening.
    """
    rule = SGDRule(
        lr=checked_rate(lr),
        momentum=number("momentum", momentum, low=0),
        dampening=number("dampening", dampening),
        weight_decay=number("weight_decay", weight_decay, low=0),
        nesterov=flag("nesterov", nesterov),
        maximize=flag("maximize", maximize),
        mode=choice("mode", mode, Mode),
    )
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"nesterov needs momentum above 0 and dampening 0, got momentum={momentum!r}, dampening={dampening!r}"
        )
    return native(rule)


@dataclasses.dataclass(frozen=True, slots=True)
class SGDRule:
    """The update of SGD; the velocity exists from the start and is not read before it was written."""

    lr: Rate
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool
    mode: Mode

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, sorted."""
        return ("momentum_buffer",) if self.momentum else ()

    def apply(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        slots: list[list[torch.Tensor]],
        *,
        count: int,
        lr: float,
    ) -> None:
        """One update in place, see `helios_fn.optim.native.Rule`."""
        velocities = slots[0] if self.momentum else []
        settings: dict[str, Any] = {
            "lr": lr,
            "momentum": self.momentum,
            "dampening": self.dampening,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
            "maximize": self.maximize,
        }
        if self.mode == "fused":
            first = bool(self.momentum) and count == 0
            torch._fused_sgd_(params, grads, velocities, is_first_step=first, **settings)
            return
        if self.mode == "foreach" and self.nesterov:
            grads = clone(grads)  # torch adds the momentum to the gradients in place
        absent = count == 0 or not self.momentum
        buffers: list[Any] = [None] * len(params) if absent else list(velocities)
        _kernels(params, grads, buffers, foreach=self.mode == "foreach", fused=False, **settings)
        if self.momentum and absent:
            torch._foreach_copy_(velocities, buffers)

    def __repr__(self) -> str:
        return call("sgd", {key: getattr(self, key) for key in self.__slots__})
