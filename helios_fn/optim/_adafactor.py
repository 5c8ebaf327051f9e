"""Adafactor: second moments of matrices kept as the product of a column and a row."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim._adafactor import adafactor as _kernels

from ..frames import border
from .base import Optimizer
from .checks import flag, number
from .formulas import at, double, following
from .native import native
from .rule import Count, ForeachMode, Rule, Scalar, Scalars, Tensors, Updated, checked_mode
from .schedules.base import Rate, checked_rate


@border
def adafactor(
    lr: Rate = 1e-2,
    *,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
    mode: ForeachMode = "foreach",
) -> Optimizer:
    """Adafactor, bit for bit ``torch.optim.Adafactor`` in the same mode, for parameters of one dtype.

    Its memory is small: a matrix of ``n x m`` has ``n + m`` numbers of state. In tensors of more dimensions
    the last two are factored; vectors and scalars have a full second moment.

    Args:
        lr: the largest relative rate, or a schedule of it. Update t uses ``min(lr, 1 / sqrt(t))`` times the root
            mean square of the parameter (at least ``eps[1]``).
        beta2_decay: the second moment of update t forgets at the rate ``t ** beta2_decay``.
        eps: the smallest root of the second moment (``None``: the machine epsilon of the parameter's dtype; where
            dtypes are mixed torch takes that of one of them for all), and the smallest scale of a parameter.
        d: updates whose root mean square is above this are scaled down to it.
        weight_decay: each update first multiplies the parameters by ``1 - lr * weight_decay``.
        maximize: ascend.
        mode: ``"foreach"`` or ``"loop"``, part of the numeric contract, see `helios_fn.optim.native`.

    From [Shazeer and Stern](https://arxiv.org/abs/1804.04235).

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range.
    """
    if not isinstance(eps, tuple | list) or len(eps) != 2:
        raise TypeError(f"eps must be two numbers, of which the first may be None, got {eps!r}")
    rule = AdafactorRule(
        lr=checked_rate(lr),
        beta2_decay=number("beta2_decay", beta2_decay, high=0),
        eps=(None if eps[0] is None else number("eps[0]", eps[0], low=0), number("eps[1]", eps[1], low=0)),
        d=number("d", d, low=1),
        weight_decay=number("weight_decay", weight_decay, low=0),
        maximize=flag("maximize", maximize),
        mode=checked_mode(mode, ForeachMode),
    )
    return native(rule)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AdafactorRule(Rule):
    """The update of Adafactor."""

    name: ClassVar[str] = "adafactor"
    elementwise: ClassVar[bool] = False
    beta2_decay: Scalar
    eps: tuple[float | None, float]
    d: Scalar
    weight_decay: Scalar
    maximize: bool
    mode: ForeachMode

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        return ("col_var", "row_var") if param.dim() > 1 else ("variance",)

    def slots(self, param: Tensor) -> dict[str, torch.Tensor]:
        """See `Rule`."""
        if param.dim() < 2:
            return {"variance": torch.zeros_like(param)}
        *outer, rows, columns = param.shape
        return {"col_var": param.new_zeros((*outer, 1, columns)), "row_var": param.new_zeros((*outer, rows, 1))}

    def refusal(self, param: Tensor) -> str:
        """See `Rule`."""
        return "adafactor has no form for complex numbers, choose another optimiser" if param.is_complex() else ""

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
        absent: list[Any] = [None] * len(params)
        columns, rows, variances = (*slots, absent) if len(slots) == 2 else (absent, absent, *slots)
        settings: dict[str, Any] = {
            "lr": lr,
            "beta2_decay": self.beta2_decay,
            "eps1": self.eps[0],
            "eps2": self.eps[1],
            "d": self.d,
            "weight_decay": self.weight_decay,
            "maximize": self.maximize,
        }
        # These count upwards by themselves, in each tensor.
        steps = [torch.full((), count, dtype=torch.float32, device="cpu") for _ in params]
        _kernels(params, grads, rows, columns, variances, steps, foreach=self.mode == "foreach", **settings)

    def scalars(self, count: Count, lr: Scalar) -> Scalars:
        """See `Rule`."""
        step, lr = double(following(count)), double(lr)
        return step**self.beta2_decay, torch.minimum(lr, step**-0.5), 1 - lr * self.weight_decay

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        decay, rate, kept = scalars
        smallest = torch.finfo(param.dtype).eps if self.eps[0] is None else self.eps[0]
        grad = -grad if self.maximize else grad
        forgotten = at(param, decay)
        scale = _root_mean_square(param).clamp(min=self.eps[1])
        rate = at(param, rate) * scale
        param = param * at(param, kept)
        if grad.dim() > 1:
            column = slots[0] + forgotten * ((grad * grad).mean(dim=-2, keepdim=True) - slots[0])
            row = slots[1] + forgotten * ((grad * grad).mean(dim=-1, keepdim=True) - slots[1])
            square = row @ column / row.mean(dim=-2, keepdim=True).clamp(min=smallest)
            new = [column, row]
        else:
            square = slots[0] + forgotten * (grad * grad - slots[0])
            new = [square]
        update = square.clamp(min=smallest * smallest).rsqrt() * grad
        excess = (_root_mean_square(update) / at(param, self.d)).clamp(min=1)
        return param - rate / excess * update, new


def _root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
