"""``torch.func.vmap`` whose errors say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import NotTraceable

_KEYED = "Make the model by hf.functional(..., draws='keyed'), or draw by hf.random.normal(key, ...) and the like"

# What torch's messages contain, and what to do.
_REMEDIES = {
    "random operation": f"it draws from torch's generators, which know no members. {_KEYED}",
    "concrete key": f"it opens a scope of the generators, which know no members. {_KEYED}",
    ".item()": "it reads the value of a tensor, as .item(), float() and int() do. Leave it a tensor",
    "doesn't have storage": "it reads the values of a tensor, as .tolist() and .numpy() do. Leave it a tensor",
    "control flow": "it decides by the value of a tensor. Take torch.where instead of if and while",
    "dynamic shape": "the shape of a result depends on values. Take torch.where instead of selecting elements",
    "being vmapped over but": "it writes members' values into a tensor that they share. Make a new tensor instead",
    "requires_grad_": "it calls requires_grad_() and the like. Take gradients by hf.value_and_grad",
    "Batching rule not implemented": "it uses an operator that cannot be mapped. Write it with other operators",
    "supported yet": "it uses an operator that cannot be mapped. Write it with other operators",
}


def mapped(function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """``torch.func.vmap(function, in_dims)``, by default over the first dimension of every tensor.

    Raises:
        NotTraceable: (when called) the function does what cannot be mapped.
    """
    both = torch.func.vmap(function, in_dims=in_dims)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return both(*args)
        try:
            return both(*args)
        except (RuntimeError, TypeError, ValueError) as error:
            remedy = next((words for sign, words in _REMEDIES.items() if sign in str(error)), None)
            if remedy is None:
                raise
            raise NotTraceable(f"this cannot be mapped over the members of an ensemble: {remedy}") from error

    return call
