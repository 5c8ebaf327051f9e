"""The losses and metrics of models that map inputs to targets, for batches ``(input, target)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F

from ..types import Aux, Key, Tree

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(
    model: Any,
    params: Tree,
    buffers: Tree,
    batch: Any,
    key: Key,
    *,
    label_smoothing: float = 0.0,
    metrics: Iterable[Metric] = (),
) -> tuple[torch.Tensor, Aux]:
    """The mean cross entropy of classes; outputs of shape ``[n, classes, ...]``, targets ``[n, ...]`` of int64."""
    return _loss(
        lambda output, target: F.cross_entropy(output, target, label_smoothing=label_smoothing),
        model, params, buffers, batch, key, metrics,
    )  # fmt: skip


def mse(
    model: Any, params: Tree, buffers: Tree, batch: Any, key: Key, *, metrics: Iterable[Metric] = ()
) -> tuple[torch.Tensor, Aux]:
    """The mean squared error; outputs and targets have one shape."""

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.shape != target.shape:
            raise ValueError(f"mse compares equal shapes, got {list(output.shape)} and {list(target.shape)}")
        return F.mse_loss(output, target)

    return _loss(criterion, model, params, buffers, batch, key, metrics)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The share of samples whose largest output is that of the target; outputs ``[n, classes, ...]``."""
    return (output.argmax(1) == target).float().mean()


def top_k(output: torch.Tensor, target: torch.Tensor, k: int = 5) -> torch.Tensor:
    """The share of samples whose target is among the ``k`` largest outputs; outputs ``[n, classes, ...]``."""
    return (output.topk(k, dim=1).indices == target.unsqueeze(1)).any(1).float().mean()


def _loss(
    criterion: Metric,
    model: Any,
    params: Tree,
    buffers: Tree,
    batch: Any,
    key: Key,
    metrics: Iterable[Metric],
) -> tuple[torch.Tensor, Aux]:
    inputs, target = batch
    output, buffers = model(params, buffers, inputs, key=key)
    with torch.no_grad():
        found = {getattr(each, "__name__", type(each).__name__): each(output, target) for each in metrics}
    return criterion(output, target), Aux(buffers=buffers, weight=len(target), metrics=found)
