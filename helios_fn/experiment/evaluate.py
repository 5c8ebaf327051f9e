"""An evaluation made of a loss: the same function, with the model in eval form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import random, tree
from ..nn import Functional
from ..types import Aux, Tree


def evaluation_of(loss: Callable[..., Any], model: Functional) -> Callable[[Tree, Tree, Any], Aux]:
    """``evaluate(params, buffers, batch) -> Aux`` with the metric ``loss`` and those that the loss reports."""
    form = Evaluated(model)

    def evaluate(params: Tree, buffers: Tree, batch: Any) -> Aux:
        found = loss(form, params, buffers, batch, _key())
        value, aux = found if isinstance(found, tuple) else (found, Aux())
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            raise TypeError(f"a loss must return a 0-d tensor, or that and an hf.Aux, got {tree.describe(found)}")
        return Aux(metrics={"loss": value, **(aux.metrics or {})}, weight=aux.weight)

    return evaluate


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A model whose calls are those of its eval form."""

    model: Functional

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """``model.eval``."""
        return self.model.eval(*args, **kwargs)

    def eval(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """``model.eval``."""
        return self.model.eval(*args, **kwargs)


def _key() -> torch.Tensor:
    """A key of the scope that an evaluation runs in: a function of the run's seed and the batch's number."""
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    return torch.from_numpy(random.numpy().integers(low, high, size=2, dtype=np.int64, endpoint=True))
