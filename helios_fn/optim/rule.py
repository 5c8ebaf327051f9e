"""What an algorithm is: its hyperparameters, the slots it keeps for a parameter, and one update, written twice.

A new algorithm is one small class. `Rule.apply` is the update in place, by torch's kernels, which has the bits
of ``torch.optim``. `Rule.formula` is the same update of one parameter as plain tensor arithmetic, which can be
differentiated, mapped and compiled. `helios_fn.optim.native` makes the optimiser of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from .checks import choice
from .schedules.base import Rate
from .text import call

Mode: TypeAlias = Literal["fused", "foreach", "loop"]
ForeachMode: TypeAlias = Literal["foreach", "loop"]
Scalar: TypeAlias = float | Tensor
"""A hyperparameter as a formula sees it: a number, or a 0-d float64 tensor."""
Count: TypeAlias = int | Tensor
"""The updates applied so far, as a formula sees it: a number, or a 0-d int64 tensor."""
Scalars: TypeAlias = tuple[Any, ...]
Tensors: TypeAlias = list[Tensor]
Updated: TypeAlias = tuple[Tensor, Tensors]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One algorithm. The fields are the arguments of the function that makes it, in their order."""

    name: ClassVar[str]
    elementwise: ClassVar[bool] = True  # whether the update of an element depends on no other
    lr: Rate

    def names(self, param: Tensor) -> tuple[str, ...]:
        """The names of the slots of a parameter, sorted. They depend on its shape at most."""
        raise NotImplementedError

    def slots(self, param: Tensor) -> dict[str, Tensor]:
        """The slots of a new parameter: zeros like itself, unless a rule says otherwise."""
        # On the meta device zeros_like is written in Python, and imports half a second's worth of modules.
        return {
            name: param.new_zeros(param.shape) if param.is_meta else torch.zeros_like(param)
            for name in self.names(param)
        }

    def refusal(self, param: Tensor) -> str:
        """Why a parameter cannot be optimised and what to do about it, or nothing."""
        return ""

    def apply(self, params: Tensors, grads: Tensors, slots: list[Tensors], *, count: int, lr: float) -> None:
        """Overwrite ``params`` and the tensors of ``slots`` (one list per name), but not ``grads``.

        All are of one dtype and device, have slots of the same names, and lie in memory alike where
        they have one shape. ``count`` is the number of updates before this one.
        """
        raise NotImplementedError

    def scalars(self, count: Count, lr: Scalar) -> Scalars:
        """What ``formula`` needs to know that is the same for all parameters: the rate, unless a rule says otherwise.

        ``count`` is the number of updates before this one.
        """
        return (lr,)

    def formula(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Scalars) -> Updated:
        """The new parameter and the new slots (in the order of their names), by operations that write nowhere.

        ``scalars`` are those of the method of this name. They and the hyperparameters may be tensors, whose values must
        not be looked at; see `helios_fn.optim.formulas`. Tensors are real, and not of half precision: callers convert.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return call(self.name, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def checked_mode(mode: Any, options: Any = Mode) -> Any:
    """A family of kernels that the algorithm has.

    Raises:
        ValueError: it has no such one.
    """
    return choice("mode", mode, options)
