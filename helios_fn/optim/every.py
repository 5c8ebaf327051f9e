"""Accumulation inside the optimiser: one update for every m calls."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch

from .. import accumulate, tree
from ..types import Tree
from .base import Optimizer, Transform, hint
from .checks import whole
from .tensors import Template, clone, leaves_like, updatable_leaves
from .text import brief


class EveryState(NamedTuple):
    """What `every` remembers: the inner state, and the pending sum, its weight and its number of calls.

    ``pending`` is a tree like the parameters (half precisions accumulate in float32); ``weight`` is a
    float64 and ``calls`` an int64, 0-d on the CPU. Right after an update all three are zero.
    """

    inner: Tree
    pending: Tree
    weight: torch.Tensor
    calls: torch.Tensor


def every(m: int, optimizer: Optimizer) -> Optimizer:
    """Collect the gradients of ``m`` calls, then make one update with their weighted mean.

    The calls in between return ``params`` itself and leave ``count`` and ``monitor``, which are the inner
    optimiser's, as they were: schedules count updates, not calls. The mean is
    ``(w0 * g0 + w1 * g1 + ...) / (w0 + w1 + ...)``, added up from left to right by
    `helios_fn.accumulate`: bit for bit what accumulation in the iteration unit computes under
    ``reduction="fold"``. Where all weights of the ``m`` calls are 0 there is no update. ``every(1, o)`` updates
    as ``o`` does, bit for bit. Reading a weight that is a tensor on an accelerator waits for it.

    ``chain(clip, every(m, o))`` clips the gradients of each call; ``every(m, chain(clip, o))`` clips the mean,
    which is what accumulating in the iteration unit does. Gradients that are pending when a run
    ends are not applied; they are state, and a longer run goes on with them.

    Raises:
        TypeError: ``m`` is not an integer or ``optimizer`` not an `Optimizer`.
        ValueError: ``m`` is below 1; in ``update``, a weight is negative or not finite.
    """
    if not isinstance(optimizer, Optimizer):
        remedy = ": chain it with an optimiser" if isinstance(optimizer, Transform) else hint(optimizer)
        raise TypeError(f"every() accumulates for an Optimizer, got {brief(optimizer)}{remedy}")
    made = _Every(whole("m", m), optimizer)
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Every:
    m: int
    optimizer: Optimizer
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> EveryState:
        leaves, treespec = updatable_leaves(params)
        return _empty(self.optimizer.init(params), accumulate.zeros(leaves), treespec)

    @torch.no_grad()
    def update(self, grads: Tree, state: EveryState, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, EveryState]:
        leaves, treespec = self.flatten(params)
        gradients = leaves_like(grads, params, treespec, Template(leaves))
        weight = _checked_weight(weight)
        calls, total = int(state.calls) + 1, float(state.weight) + weight
        acc = _added(state, gradients, weight)
        if calls < self.m:
            pending = EveryState(state.inner, tree.unflatten(treespec, acc), _total(total), state.calls + 1)
            return params, pending
        inner = state.inner
        if total > 0:
            # With one call there is nothing to average, and w * g / w would not give g's bits back.
            mean = gradients if self.m == 1 else accumulate.divide(acc, total, like=gradients)
            params, inner = self.optimizer.update(tree.unflatten(treespec, mean), inner, params, weight=total)
        return params, _empty(inner, accumulate.zeros(leaves), treespec)

    def count(self, state: EveryState) -> int:
        return int(self.optimizer.count(state.inner))

    def monitor(self, state: EveryState) -> dict[str, float]:
        return dict(self.optimizer.monitor(state.inner))

    def __repr__(self) -> str:
        return f"every({self.m}, {self.optimizer!r})"


def _added(state: EveryState, gradients: list[torch.Tensor], weight: float) -> list[torch.Tensor]:
    terms = accumulate.scale(gradients, weight)
    if int(state.calls) == 0:
        return terms
    acc = clone(tree.leaves(state.pending))
    accumulate.add_(acc, terms)
    return acc


def _empty(inner: Tree, zeros: list[torch.Tensor], treespec: Any) -> EveryState:
    calls = torch.zeros((), dtype=torch.int64, device="cpu")
    return EveryState(inner, tree.unflatten(treespec, zeros), _total(0.0), calls)


def _total(weight: float) -> torch.Tensor:
    return torch.full((), weight, dtype=torch.float64, device="cpu")


def _checked_weight(weight: Any) -> float:
    value = float(weight)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"the weight of gradients must be finite and not negative, got {value}")
    return value
