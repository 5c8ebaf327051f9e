"""The usual training step, composed of small pure functions: gradients, mean, update, average."""

from __future__ import annotations

from typing import Any

import torch

from . import tree
from .finite import all_finite, mark_bad
from .nn import Average, LossFn, Mean, loss_grad, microsteps
from .optim import Optimizer
from .state import TrainState, check_optimizer
from .types import Step, Tree


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

    Raises:
        TypeError: an argument is of the wrong kind; in a step, ``loss_fn`` returns something else.
        ValueError: in a step, the loss does not depend on the params, a metric has a name that the step
            itself logs, or ``optimizer`` or ``average`` are not those that made the state.
    """
    grad_fn = loss_grad(loss_fn)
    check_optimizer(optimizer)
    if not isinstance(average, Average | None):
        raise TypeError(f"average must be an average such as hf.ema(0.999), or None, got {tree.describe(average)}")

    def step(state: TrainState, batch: Any) -> TrainState:
        mean = microsteps(grad_fn, state, batch)
        try:
            params, opt_state, averages = _updated(state, mean, optimizer, average)
            monitored = optimizer.monitor(opt_state)
        except (AttributeError, TypeError, ValueError, LookupError) as error:
            misfit = _misfit(optimizer, state)  # not looked for before: it costs as much as a new state
            if misfit:
                raise ValueError(misfit) from error
            raise
        return state.replace(
            params=params,
            buffers=mean.buffers,
            opt_state=opt_state,
            averages=averages,
            first_bad=_first_bad(state, mean),
            metrics=_metrics(mean, monitored),
        )

    return step


def _updated(state: TrainState, mean: Mean, optimizer: Optimizer, average: Average | None) -> tuple[Tree, Tree, Tree]:
    if _is_zero(mean.weight):
        return state.params, state.opt_state, state.averages
    params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params, weight=mean.weight)
    if average is None and state.averages is not None:
        raise ValueError("state.averages would never be updated: hand make_step the average that made them")
    count = optimizer.count(opt_state)
    if average is None or count == optimizer.count(state.opt_state):
        return params, opt_state, state.averages
    if state.averages is None:
        raise ValueError("make_step has an average but state.averages is None: hand the same average to hf.init_state")
    return params, opt_state, average.update(state.averages, params, count)


def _misfit(optimizer: Optimizer, state: TrainState) -> str:
    """How the state's optimiser memory differs in structure from the optimiser's, in words; empty if it does not."""
    expected, found = optimizer.init(state.params), state.opt_state
    if tree.structure(expected) == tree.structure(found):
        return ""
    if found is None:
        return "state.opt_state is None: make the state by hf.init_state(params, optimizer)"
    wanted, got = set(tree.paths(expected)), set(tree.paths(found))
    missing, unknown = wanted - got, got - wanted
    if missing:
        difference = f"has no {min(missing)!r}"
    else:
        difference = f"has {min(unknown)!r} too" if unknown else "has other containers"
    return (
        f"state.opt_state (a {type(found).__name__}) was not made by {optimizer!r} for state.params: it {difference}. "
        "Hand hf.init_state the same optimizer"
    )


def _first_bad(state: TrainState, mean: Mean) -> torch.Tensor:
    finite = all_finite([mean.loss, *tree.leaves(mean.grads)])
    return mark_bad(state.first_bad, finite, state.counters.iteration)


def _metrics(mean: Mean, monitored: dict[str, float]) -> dict[str, torch.Tensor]:
    taken = [name for name in mean.metrics if name == "loss" or name in monitored]
    if taken:
        raise ValueError(f"Aux.metrics may not have {taken[0]!r}, which make_step logs itself: choose another name")
    metrics = {"loss": mean.loss, **mean.metrics}
    for name, value in monitored.items():
        metrics.setdefault(name, torch.tensor(value, dtype=torch.float64))
    return metrics


def _is_zero(weight: Any) -> bool:
    return bool(weight == 0)
