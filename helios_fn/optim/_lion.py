"""Lion: steps of one size, in the direction of the sign of an interpolated momentum."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..frames import border
from .base import Optimizer
from .checks import decays, flag, number
from .formulas import at, toward
from .native import native
from .rule import Rule, Scalar, Scalars, Tensors, Updated
from .schedules.base import Rate, checked_rate


@border
def lion(
    lr: Rate = 1e-4,
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Lion, which keeps one slot and moves every element by ``lr``.

    ``update = sign(betas[0] * momentum + (1 - betas[0]) * grad)``;
    ``param = param * (1 - lr * weight_decay) - lr * update``;
    ``momentum = betas[1] * momentum + (1 - betas[1]) * grad``.

    The rate should be three to ten times smaller than that of `adamw`, the decay as many times larger.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        betas: the shares of the momentum in the direction, and in the next momentum.
        weight_decay: each update first multiplies the parameters by ``1 - lr * weight_decay``.
        maximize: ascend.

    From [Chen and others](https://arxiv.org/abs/2302.06675), algorithm 2.

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range.
    """
    rule = LionRule(
        lr=checked_rate(lr),
        betas=decays("betas", betas),
        weight_decay=number("weight_decay", weight_decay, low=0),
        maximize=flag("maximize", maximize),
    )
    return native(rule)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LionRule(Rule):
    """The update of Lion. The derivative of the sign is 0 everywhere."""

    name: ClassVar[str] = "lion"
    betas: tuple[Scalar, Scalar]
    weight_decay: Scalar
    maximize: bool

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        return ("exp_avg",)

    def refusal(self, param: Tensor) -> str:
        """See `Rule`."""
        return (
            "lion takes signs, which complex numbers have not, choose another optimiser" if param.is_complex() else ""
        )

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
        (momenta,), (first, second) = slots, (float(beta) for beta in self.betas)
        if self.maximize:
            grads = list(torch._foreach_neg(grads))
        updates = torch._foreach_lerp(momenta, grads, 1 - first)
        torch._foreach_sign_(updates)
        if self.weight_decay:
            torch._foreach_mul_(params, 1 - lr * self.weight_decay)
        torch._foreach_add_(params, updates, alpha=-lr)
        torch._foreach_lerp_(momenta, grads, 1 - second)

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        (lr,), (momentum,), (first, second) = scalars, slots, self.betas
        grad = -grad if self.maximize else grad
        update = toward(momentum, grad, 1 - first).sign()
        param = param * at(param, 1 - lr * self.weight_decay) - at(param, lr) * update
        return param, [toward(momentum, grad, 1 - second)]
