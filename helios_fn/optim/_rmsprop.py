"""RMSprop: the gradient divided by the root of a running mean of its square."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop as _kernels

from ..frames import border
from .base import Optimizer
from .checks import flag, number
from .formulas import at, present, root, toward
from .native import native
from .rule import ForeachMode, Rule, Scalar, Scalars, Tensors, Updated, checked_mode
from .schedules.base import Rate, checked_rate


@border
def rmsprop(
    lr: Rate = 1e-2,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    mode: ForeachMode = "foreach",
) -> Optimizer:
    """RMSprop, bit for bit ``torch.optim.RMSprop`` in the same mode.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        alpha: the decay of the running mean of the square.
        eps: added to its root.
        weight_decay: an L2 penalty, added to the gradient.
        momentum: the decay of a velocity that collects the divided gradients.
        centered: subtract the square of the gradient's running mean, which makes a variance of the square's.
        maximize: ascend.
        mode: ``"foreach"`` or ``"loop"``, part of the numeric contract, see `helios_fn.optim.native`.

    From [Hinton's lecture 6e](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf); centred, from
    [Graves](https://arxiv.org/abs/1308.0850).

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range.
    """
    rule = RMSpropRule(
        lr=checked_rate(lr),
        alpha=number("alpha", alpha, low=0),
        eps=number("eps", eps, low=0),
        weight_decay=number("weight_decay", weight_decay, low=0),
        momentum=number("momentum", momentum, low=0),
        centered=flag("centered", centered),
        maximize=flag("maximize", maximize),
        mode=checked_mode(mode, ForeachMode),
    )
    return native(rule)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RMSpropRule(Rule):
    """The update of RMSprop."""

    name: ClassVar[str] = "rmsprop"
    alpha: Scalar
    eps: Scalar
    weight_decay: Scalar
    momentum: Scalar
    centered: bool
    maximize: bool
    mode: ForeachMode

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        before = ("grad_avg",) if self.centered else ()
        return (*before, "momentum_buffer", "square_avg") if present(self.momentum) else (*before, "square_avg")

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
        by_name = dict(zip(self.names(params[0]), slots, strict=True))
        _kernels(
            params,
            grads,
            by_name["square_avg"],
            by_name.get("grad_avg", []),
            by_name.get("momentum_buffer", []),
            # Counted upwards and not otherwise used.
            [torch.zeros((), device="cpu") for _ in params],
            foreach=self.mode == "foreach",
            maximize=self.maximize,
            has_complex=any(param.is_complex() for param in params),
            **self._settings(lr),
        )

    def _settings(self, lr: float) -> dict[str, Any]:
        return {
            "lr": lr,
            "alpha": self.alpha,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "centered": self.centered,
        }

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        (lr,) = scalars
        old = dict(zip(self.names(param), slots, strict=True))
        grad = -grad if self.maximize else grad
        if present(self.weight_decay):
            grad = grad + at(param, self.weight_decay) * param
        new = {"square_avg": old["square_avg"] * at(param, self.alpha) + at(param, 1 - self.alpha) * grad * grad}
        spread = new["square_avg"]
        if self.centered:
            new["grad_avg"] = toward(old["grad_avg"], grad, 1 - self.alpha)
            spread = spread - new["grad_avg"] * new["grad_avg"]
        step = grad / (root(spread) + at(param, self.eps))
        if "momentum_buffer" in old:
            step = new["momentum_buffer"] = at(param, self.momentum) * old["momentum_buffer"] + step
        return param - at(param, lr) * step, [new[name] for name in old]
