"""Muon: momentum made orthogonal, for the matrices of hidden layers."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from ..frames import border
from .base import Optimizer
from .checks import choice, flag, number, whole
from .formulas import at
from .native import native
from .rule import Rule, Scalar, Scalars, Tensors, Updated
from .schedules.base import Rate, checked_rate

Adjustment: TypeAlias = Literal["original", "match_rms_adamw"]


@border
def muon(
    lr: Rate = 1e-3,
    *,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Adjustment = "original",
) -> Optimizer:
    """Muon, bit for bit ``torch.optim.Muon``. It takes matrices only; give it those of a network by `groups`.

        optimizer = groups({"blocks.*.weight": muon(0.02)}, default=adamw(3e-4))

    One case differs: of parameters in bfloat16, torch without ``nesterov`` divides the momentum itself by its norm.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        weight_decay: each update first multiplies the parameters by ``1 - lr * weight_decay``.
        momentum: the decay of the running mean of the gradient.
        nesterov: look ahead along the running mean.
        ns_coefficients: of the polynomial that each Newton-Schulz step applies to the singular values.
        eps: the smallest norm that the momentum is divided by.
        ns_steps: the number of Newton-Schulz steps, which are done in bfloat16.
        adjust_lr_fn: how the rate is adjusted to a matrix of ``n x m``: times ``sqrt(max(1, n / m))``, or
            times ``0.2 * sqrt(max(n, m))``, with which a rate that suits `adamw` suits.

    From [Jordan](https://kellerjordan.github.io/posts/muon) and [Liu and others](https://arxiv.org/abs/2502.16982).

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range; in ``init``, a parameter is not a matrix.
    """
    if not isinstance(ns_coefficients, tuple | list) or len(ns_coefficients) != 3:
        raise TypeError(f"ns_coefficients must be three numbers, got {ns_coefficients!r}")
    first, second, third = (number(f"ns_coefficients[{i}]", value) for i, value in enumerate(ns_coefficients))
    rule = MuonRule(
        lr=checked_rate(lr),
        weight_decay=number("weight_decay", weight_decay, low=0),
        momentum=number("momentum", momentum, low=0),
        nesterov=flag("nesterov", nesterov),
        ns_coefficients=(first, second, third),
        eps=number("eps", eps, low=0),
        ns_steps=whole("ns_steps", ns_steps),
        adjust_lr_fn=choice("adjust_lr_fn", adjust_lr_fn, Adjustment),
    )
    return native(rule)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class MuonRule(Rule):
    """The update of Muon. Derivatives pass the rounding to bfloat16 as if it were not there."""

    name: ClassVar[str] = "muon"
    elementwise: ClassVar[bool] = False
    weight_decay: Scalar
    momentum: Scalar
    nesterov: bool
    ns_coefficients: tuple[float, float, float]
    eps: float
    ns_steps: int
    adjust_lr_fn: Adjustment

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        return ("momentum_buffer",)

    def refusal(self, param: Tensor) -> str:
        """See `Rule`."""
        if param.dim() == 2 and not param.is_complex():
            return ""
        return (
            "muon takes real matrices only, give the others another optimiser, as in "
            "groups({'blocks.*.weight': muon(...)}, default=adamw(...))"
        )

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
        for param, grad, mean in zip(params, grads, slots[0], strict=True):
            mean.lerp_(grad, 1 - self.momentum)
            update = self._orthogonal(grad.lerp(mean, self.momentum) if self.nesterov else mean)
            param.mul_(1 - lr * self.weight_decay)
            param.add_(update, alpha=-lr * self._adjustment(param))

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        (lr,) = scalars
        # As lerp computes it, to the bit: in bfloat16 the steps that follow make much of little.
        mean = torch.lerp(slots[0], grad, at(param, 1 - self.momentum))
        update = self._orthogonal(torch.lerp(grad, mean, at(param, self.momentum)) if self.nesterov else mean)
        param = param * at(param, 1 - lr * self.weight_decay)
        return param - at(param, lr * self._adjustment(param)) * update.to(param.dtype), [mean]

    def _orthogonal(self, matrix: torch.Tensor) -> torch.Tensor:
        """``u @ v.T`` for a matrix ``u @ s @ v.T``, nearly: singular values end up between 0.5 and 1.5."""
        first, second, third = self.ns_coefficients
        tall = matrix.size(0) > matrix.size(1)
        found = matrix.bfloat16()
        found = found.T if tall else found
        found = found / found.norm().clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = found @ found.T
            found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=second, alpha=third), found, beta=first)
        return found.T if tall else found

    def _adjustment(self, param: Tensor) -> float:
        rows, columns = param.shape
        if self.adjust_lr_fn == "original":
            return math.sqrt(max(1, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))
