"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.sgd import sgd as _kernels

from ..frames import border
from .base import Optimizer
from .checks import flag, number
from .formulas import at, pick, present
from .native import native
from .rule import Count, Mode, Rule, Scalar, Scalars, Tensors, Updated, checked_mode
from .schedules.base import Rate, checked_rate
from .tensors import clone


@border
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
        mode=checked_mode(mode),
    )
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"nesterov needs momentum above 0 and dampening 0, got momentum={momentum!r}, dampening={dampening!r}"
        )
    return native(rule)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SGDRule(Rule):
    """The update of SGD; the velocity exists from the start and is not read before it was written."""

    name: ClassVar[str] = "sgd"
    momentum: Scalar
    dampening: Scalar
    weight_decay: Scalar
    nesterov: bool
    maximize: bool
    mode: Mode

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        return ("momentum_buffer",) if present(self.momentum) else ()

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
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

    def scalars(self, count: Count, lr: Scalar) -> Scalars:
        """See `Rule`."""
        return lr, count == 0

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        lr, is_first = scalars
        grad = -grad if self.maximize else grad
        if present(self.weight_decay):
            grad = grad + at(param, self.weight_decay) * param
        if not slots:
            return param - at(param, lr) * grad, []
        momentum = at(param, self.momentum)
        velocity = pick(is_first, grad, momentum * slots[0] + at(param, 1 - self.dampening) * grad)
        direction = grad + momentum * velocity if self.nesterov else velocity
        return param - at(param, lr) * direction, [velocity]
