"""The mean over micro-batches, and the mean of one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import tree
from ..types import Tree
from .report import Weight


class Mean(NamedTuple):
    """What the micro-batches of one iteration say together; also what a single one says.

    ``weight`` is their total weight. If it is 0, make no update.
    """

    loss: torch.Tensor
    grads: Tree
    buffers: Tree
    metrics: dict[str, torch.Tensor]
    weight: Weight


def mean_of_one(result: Mean, buffers: Tree) -> Mean:
    """The mean of one micro-batch: ``result`` itself, or zeros and the old ``buffers`` if its weight is 0."""
    weight = result.weight
    if not isinstance(weight, torch.Tensor):
        if weight != 0:
            return result
        loss, grads, metrics = tree.map(torch.zeros_like, (result.loss, result.grads, result.metrics))
        return Mean(loss, grads, buffers, metrics, weight)

    def unless_zero(new: Any, old: Any) -> Any:
        same = new is old or not isinstance(new, torch.Tensor)
        return new if same else torch.where(weight == 0, old, new)

    def or_zero(leaf: torch.Tensor) -> torch.Tensor:
        return torch.where(weight == 0, 0, leaf)

    loss, grads, metrics = tree.map(or_zero, (result.loss, result.grads, result.metrics))
    return Mean(loss, grads, tree.map(unless_zero, result.buffers, buffers), metrics, weight)
