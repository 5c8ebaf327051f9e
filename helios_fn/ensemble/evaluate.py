"""An evaluation of one model as an evaluation of all members at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import tree
from ..metrics import Measured
from ..types import Aux, Tree
from .explain import mapped

EvalFn = Callable[[Any, Any, Any], Aux]


def evaluate_members(eval_fn: EvalFn) -> EvalFn:
    """``eval_fn(params, buffers, batch) -> Aux`` for stacked params and buffers, to be handed to `Validator`.

    Every member is evaluated on the same batch, and its weight is the same for all. Of each metric there is the
    mean over all members under its own name, and each member's value under ``name/0``, ``name/1``, ...

    Raises:
        TypeError: (when called) ``eval_fn`` returned something else than an `Aux` with metrics.
        NotTraceable: (when called) ``eval_fn`` cannot be mapped over members.
    """

    def evaluate(params: Tree, buffers: Tree, batch: Any) -> Aux:
        said: list[Any] = []

        def one(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            own_params, own_buffers = tree.with_tensors((params, buffers), tensors)
            aux = eval_fn(own_params, own_buffers, batch)
            if not isinstance(aux, Aux) or not aux.metrics:
                raise TypeError(f"eval_fn must return hf.Aux(metrics={{...}}, weight=...), got {tree.describe(aux)}")
            for name, value in aux.metrics.items():
                if isinstance(value, Measured):
                    raise TypeError(
                        f"metric {name!r} cannot be mapped over members: give the mean over the batch, a scalar"
                    )
            said.append(list(aux.metrics))
            return [torch.as_tensor(value) for value in (*aux.metrics.values(), aux.weight)]

        *values, weights = mapped(one)(tree.tensors((params, buffers)))
        metrics = {}
        for name, value in zip(said[-1], values, strict=True):
            metrics[name] = value.double().mean()
            metrics.update({f"{name}/{index}": each for index, each in enumerate(value.unbind())})
        return Aux(weight=weights[0], metrics=metrics)

    return evaluate
