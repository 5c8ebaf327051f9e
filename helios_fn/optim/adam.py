"""Adam, and the rule it shares with AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.optim.adam import adam as _adam_kernels
from torch.optim.adamw import adamw as _adamw_kernels

from .base import Optimizer
from .checks import choice, flag, number
from .native import Mode, native
from .schedules.base import Rate, checked_rate
from .text import call


def adam(
    lr: Rate = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    mode: Mode = "fused",
) -> Optimizer:
    """Adam, bit for bit ``torch.optim.Adam`` in the same mode.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        betas: the decays of the running means of the gradient and of its square.
        eps: added to the root of the second mean.
        weight_decay: an L2 penalty, added to the gradient; see `adamw` for the decoupled form.
        amsgrad: divide by the largest second mean so far.
        maximize: ascend.
        mode: ``"fused"``, ``"foreach"`` or ``"loop"``, part of the numeric contract, see `helios_fn.optim.native`.

    From [Kingma and Ba](https://arxiv.org/abs/1412.6980).

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range.
    """
    return native(adam_rule("adam", lr, betas, eps, weight_decay, amsgrad, maximize, mode))


@dataclasses.dataclass(frozen=True, slots=True)
class AdamRule:
    """The update of Adam (L2 penalty) and of AdamW (decoupled decay), which differ in nothing else."""

    name: str
    lr: Rate
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    mode: Mode

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, sorted."""
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.amsgrad else ("exp_avg", "exp_avg_sq")

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
        tensors = (params, grads, slots[0], slots[1], slots[2] if self.amsgrad else [])
        settings: dict[str, Any] = {
            "lr": lr,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "weight_decay": self.weight_decay,
            "eps": self.eps,
            "amsgrad": self.amsgrad,
            "maximize": self.maximize,
        }
        decoupled = self.name == "adamw"
        if self.mode == "fused":
            kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
            # The kernel reads the count of this update, which is the same for all tensors.
            step = torch.full((), count + 1, dtype=torch.float32, device=params[0].device)
            kernel(*tensors, [step] * len(params), **settings)
        else:
            kernels = _adamw_kernels if decoupled else _adam_kernels
            # These count upwards by themselves, in each tensor.
            steps = [torch.full((), count, dtype=torch.float64, device="cpu") for _ in params]
            has_complex = any(param.is_complex() for param in params)
            kernels(*tensors, steps, foreach=self.mode == "foreach", fused=False, has_complex=has_complex, **settings)

    def __repr__(self) -> str:
        return call(self.name, {key: getattr(self, key) for key in self.__slots__ if key != "name"})


def adam_rule(
    name: str,
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    mode: Mode,
) -> AdamRule:
    """The rule of ``adam`` or ``adamw`` with its arguments checked."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}")
    return AdamRule(
        name=name,
        lr=checked_rate(lr),
        betas=(number("betas[0]", betas[0], low=0, below=1), number("betas[1]", betas[1], low=0, below=1)),
        eps=number("eps", eps, low=0),
        weight_decay=number("weight_decay", weight_decay, low=0),
        amsgrad=flag("amsgrad", amsgrad),
        maximize=flag("maximize", maximize),
        mode=choice("mode", mode, Mode),
    )
