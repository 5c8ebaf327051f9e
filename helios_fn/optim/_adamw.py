"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import ClassVar

from ..frames import border
from ._adam import AdamRule
from .base import Optimizer
from .native import native
from .rule import Mode
from .schedules.base import Rate


@border
def adamw(
    lr: Rate = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    mode: Mode = "fused",
) -> Optimizer:
    """AdamW, bit for bit ``torch.optim.AdamW`` in the same mode.

    Args:
        lr: the learning rate, or a schedule of it: a function of the update count.
        betas: the decays of the running means of the gradient and of its square.
        eps: added to the root of the second mean.
        weight_decay: each update first multiplies the parameters by ``1 - lr * weight_decay``.
        amsgrad: divide by the largest second mean so far.
        maximize: ascend.
        mode: ``"fused"``, ``"foreach"`` or ``"loop"``, part of the numeric contract, see `helios_fn.optim.native`.

    From [Loshchilov and Hutter](https://arxiv.org/abs/1711.05101).

    Raises:
        TypeError: a hyperparameter is of the wrong kind.
        ValueError: a hyperparameter is out of range.
    """
    return native(AdamWRule.checked(lr, betas, eps, weight_decay, amsgrad, maximize, mode))


class AdamWRule(AdamRule):
    """The update of AdamW."""

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True
