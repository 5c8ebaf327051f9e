"""The usual training step, composed of small pure functions: gradients, mean, update, average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import tree
from .finite import all_finite, mark_bad
from .nn import Average, Mean, microsteps, value_and_grad
from .optim import Optimizer
from .state import TrainState
from .types import Aux, Step, Tree

LossFn = Callable[[Any, Any, Any, Any], Any]


def make_step(loss_fn: LossFn, optimizer: Optimizer, *, average: Average | None = None) -> Step:
    """A pure ``step(state, batch) -> state`` from a loss and an optimiser.

    Args:
        loss_fn: ``loss_fn(params, buffers, batch, key) -> (loss, Aux)``, or just the loss when it has
            no buffers, weight or metrics to report. It runs inside a scope keyed by ``key``, so all it
            draws from torch, ``random`` or NumPy is a function of the state.
        optimizer: see `helios_fn.optim`; the one whose ``init`` made ``state.opt_state``.
        average: the average whose ``init`` made ``state.averages``, such as `helios_fn.ema`. It
            follows the updates, so it rests while ``optim.every`` only accumulates.

    The step logs ``loss``, the metrics of ``Aux``, and what the optimiser monitors (its learning
    rate). An iteration of total weight 0 makes no update. An iteration whose loss or gradients are
    not finite is remembered in ``state.first_bad``.
    """
    grad_fn = value_and_grad(_with_aux(loss_fn), has_aux=True)

    def step(state: TrainState, batch: Any) -> TrainState:
        mean = microsteps(grad_fn, state, batch)
        params, opt_state, averages = _updated(state, mean, optimizer, average)
        return state.replace(
            params=params,
            buffers=mean.buffers,
            opt_state=opt_state,
            averages=averages,
            first_bad=_first_bad(state, mean),
            metrics=_metrics(mean, optimizer.monitor(opt_state)),
        )

    return step


def _updated(state: TrainState, mean: Mean, optimizer: Optimizer, average: Average | None) -> tuple[Tree, Tree, Tree]:
    if _is_zero(mean.weight):
        return state.params, state.opt_state, state.averages
    params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params, weight=mean.weight)
    count = optimizer.count(opt_state)
    if average is None or count == optimizer.count(state.opt_state):
        return params, opt_state, state.averages
    if state.averages is None:
        raise ValueError("make_step has an average but state.averages is None: hand the same average to hf.init_state")
    return params, opt_state, average.update(state.averages, params, count)


def _first_bad(state: TrainState, mean: Mean) -> torch.Tensor:
    finite = all_finite([mean.loss, *tree.leaves(mean.grads)])
    return mark_bad(state.first_bad, finite, state.counters.iteration)


def _metrics(mean: Mean, monitored: dict[str, float]) -> dict[str, torch.Tensor]:
    metrics = {"loss": mean.loss, **mean.metrics}
    for name, value in monitored.items():
        metrics.setdefault(name, torch.tensor(value, dtype=torch.float64))
    return metrics


def _is_zero(weight: Any) -> bool:
    return bool(weight == 0)


def _with_aux(loss_fn: LossFn) -> LossFn:
    def call(params: Any, buffers: Any, batch: Any, key: Any) -> Any:
        returned = loss_fn(params, buffers, batch, key)
        return (returned, Aux()) if isinstance(returned, torch.Tensor) else returned

    return call
