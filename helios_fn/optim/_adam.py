"""Adam, and the rule it shares with AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam as _adam_kernels
from torch.optim.adamw import adamw as _adamw_kernels

from ..frames import border
from ..scalars import Counts
from .base import Optimizer
from .checks import decays, flag, number
from .formulas import at, following, present, root, toward
from .native import native
from .rule import Count, Mode, Rule, Scalar, Scalars, Tensors, Updated, checked_mode
from .schedules.base import Rate, checked_rate


@border
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
    return native(AdamRule.checked(lr, betas, eps, weight_decay, amsgrad, maximize, mode))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AdamRule(Rule):
    """Adam with an L2 penalty; with decoupled decay it is AdamW, and differs in nothing else."""

    name: ClassVar[str] = "adam"
    decoupled: ClassVar[bool] = False
    betas: tuple[Scalar, Scalar]
    eps: Scalar
    weight_decay: Scalar
    amsgrad: bool
    maximize: bool
    mode: Mode

    @classmethod
    def checked(
        cls, lr: Any, betas: Any, eps: Any, weight_decay: Any, amsgrad: Any, maximize: Any, mode: Any
    ) -> AdamRule:
        """The rule with its arguments checked."""
        return cls(
            lr=checked_rate(lr),
            betas=decays("betas", betas),
            eps=number("eps", eps, low=0),
            weight_decay=number("weight_decay", weight_decay, low=0),
            amsgrad=flag("amsgrad", amsgrad),
            maximize=flag("maximize", maximize),
            mode=checked_mode(mode),
        )

    def names(self, param: Tensor) -> tuple[str, ...]:
        """See `Rule`."""
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.amsgrad else ("exp_avg", "exp_avg_sq")

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """See `Rule`."""
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
        if self.mode == "fused":
            kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
            # The kernel reads the count of this update, which is the same for all tensors.
            step = _step(count + 1, params[0].device)
            kernel(*tensors, [step] * len(params), **settings)
        else:
            kernels = _adamw_kernels if self.decoupled else _adam_kernels
            # These count upwards by themselves, in each tensor.
            steps = [torch.full((), count, dtype=torch.float64, device="cpu") for _ in params]
            has_complex = any(param.is_complex() for param in params)
            kernels(*tensors, steps, foreach=self.mode == "foreach", fused=False, has_complex=has_complex, **settings)

    def scalars(self, count: Count, lr: Scalar) -> Scalars:
        """See `Rule`."""
        (beta1, beta2), step = self.betas, following(count)
        return 1 - lr * self.weight_decay, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """See `Rule`."""
        (beta1, beta2), (decay, rate, correction) = self.betas, scalars
        grad = -grad if self.maximize else grad
        if self.decoupled:
            param = param * at(param, decay)
        elif present(self.weight_decay):
            grad = grad + at(param, self.weight_decay) * param
        mean = toward(slots[0], grad, 1 - beta1)
        square = slots[1] * at(param, beta2) + at(param, 1 - beta2) * grad * grad
        new = [mean, square]
        if self.amsgrad:
            new.append(torch.maximum(slots[2], square))
        scale = root(new[-1]) / at(param, correction) + at(param, self.eps)
        return param - at(param, rate) * (mean / scale), new


_counts = Counts(torch.float32)


def _step(count: int, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return _counts.tensor(count)
    return torch.scalar_tensor(count, dtype=torch.float32, device=device)  # filled there: a copy would be waited for
