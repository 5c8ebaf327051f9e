"""Accumulation inside the optimiser: one update for every m calls."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch

from .. import accumulate, tree
from ..dtensors import any_sharded, around, local
from ..tracing import by_formula, is_traced, stored
from ..types import Tree
from .base import Optimizer, Transform, hint
from .checks import whole
from .formulas import at, double, pick
from .layout import Known, survey
from .tensors import check_like, check_shards, clone, leaves_like, updatable_leaves
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

    Where no branch may depend on a value (compiled or mapped) every call computes the update and selects it or not.

    Raises:
        TypeError: ``m`` is not an integer or ``optimizer`` not an `Optimizer`.
        ValueError: ``m`` is below 1; in ``update``, a weight is negative or not finite.

    Example:
        >>> optimizer = hf.optim.every(2, hf.optim.sgd(1.0))
        >>> params = {"w": torch.tensor([0.0])}
        >>> opt_state = optimizer.init(params)
        >>> for gradient in (1.0, 3.0):
        ...     params, opt_state = optimizer.update({"w": torch.tensor([gradient])}, opt_state, params)
        ...     print(params["w"].item(), optimizer.count(opt_state))
        ...
        0.0 0
        -2.0 1
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
    known: Known = dataclasses.field(default_factory=Known, compare=False)

    def init(self, params: Tree) -> EveryState:
        leaves, treespec = updatable_leaves(params, sharded=True)
        return _empty(self.optimizer.init(params), tree.unflatten(treespec, accumulate.zeros(leaves)))

    def update(
        self, grads: Tree, state: EveryState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, EveryState]:
        if is_traced():
            return self._selected(grads, state, params, weight, donate)
        checked = self._checked(grads, params)
        if checked is None:
            return self._sharded(grads, state, params, weight, donate)
        leaves, treespec, gradients = checked
        weight = _checked_weight(weight)
        if self.m == 1:
            # Nothing to average, and w * g / w would not give g's bits back.
            return self._moved(treespec.unflatten(gradients), state, params, weight, state.pending, donate)
        calls, total = int(state.calls) + 1, float(state.weight) + weight
        recorded = by_formula((*gradients, *tree.leaves(state.pending)))
        with torch.set_grad_enabled(recorded):
            acc = _added(state, gradients, weight, overwrite=donate and not recorded)
            if calls < self.m:
                pending = treespec.unflatten(acc)
                return params, EveryState(state.inner, pending, _total(total), state.calls + 1)
            mean = treespec.unflatten(accumulate.divide(acc, total, like=gradients))
        return self._moved(mean, state, params, total, treespec.unflatten(accumulate.zeros(leaves)), donate)

    def _moved(
        self, mean: Tree, state: EveryState, params: Tree, total: float, pending: Tree, donate: bool
    ) -> tuple[Tree, EveryState]:
        """After the last of ``m`` calls."""
        inner = state.inner
        if total > 0:
            given = {"weight": total, "donate": True} if donate else {"weight": total}
            params, inner = self.optimizer.update(mean, inner, params, **given)
        return params, _empty(inner, pending)

    def _selected(
        self, grads: Tree, state: EveryState, params: Tree, weight: Any, donate: bool
    ) -> tuple[Tree, EveryState]:
        """The same where values are unknown."""
        leaves, treespec = tree.flatten(params)
        gradients = leaves_like(grads, params, treespec)
        check_like("grads", gradients, leaves, lambda: tree.paths(params))
        weight = double(weight if isinstance(weight, torch.Tensor) else _checked_weight(weight))
        calls, total = state.calls + 1, state.weight + weight
        full, some = calls >= self.m, total > 0
        mean, pending = gradients, tree.leaves(state.pending)
        if self.m > 1:
            terms = [_term(leaf, weight) for leaf in gradients]
            acc = [pick(calls == 1, term, old + term) for old, term in zip(pending, terms, strict=True)]
            # By 1 where there is no weight: a NaN that is not selected would still reach the derivatives.
            divisor = pick(some, total, torch.ones_like(total))
            mean = [(leaf / at(leaf, divisor)).to(like.dtype) for leaf, like in zip(acc, gradients, strict=True)]
            pending = [pick(full, torch.zeros_like(leaf), leaf) for leaf in acc]
        new, inner = self.optimizer.update(tree.unflatten(treespec, mean), state.inner, params, weight=total)
        # In this order, as a tree: what is selected where the update is due, and what in any case.
        before, after = (params, state.inner), (new, inner)
        moved = [
            pick(full & some, there, here)
            for here, there in zip(tree.tensors(before), tree.tensors(after), strict=True)
        ]
        rest = [*pending, pick(full, torch.zeros_like(total), total), pick(full, torch.zeros_like(calls), calls)]
        old = (*before, state.pending, state.weight, state.calls)
        found = stored([*moved, *rest], tree.tensors(old), donate=donate)
        params, *fields = tree.with_tensors(old, found)
        return params, EveryState(*fields)

    def _sharded(
        self, grads: Tree, state: EveryState, params: Tree, weight: Any, donate: bool
    ) -> tuple[Tree, EveryState]:
        """The same of the parts that this process holds; the inner optimiser gets sharded trees as ever."""
        check_shards(grads, params)

        def update(mean: Tree, inner: Tree, _: Tree, **given: Any) -> tuple[Tree, Tree]:
            return self.optimizer.update(tree.map(around, mean, params), inner, params, **given)

        parts = _Every(self.m, self.optimizer._replace(update=update), self.known)
        held, mine = tree.map(local, params), state._replace(pending=tree.map(local, state.pending))
        new, after = parts.update(tree.map(local, grads), mine, held, weight=weight, donate=donate)
        pending = tree.map(around, after.pending, params)
        return params if new is held else new, after._replace(pending=pending)

    def _checked(self, grads: Tree, params: Tree) -> tuple[list[torch.Tensor], Any, list[torch.Tensor]] | None:
        """The leaves of ``params``, their structure, and the gradients for them, laid out in memory like them.

        ``None`` if some are sharded.
        """
        seen = self.known.recall(params, (), grads)
        if seen is None:
            leaves, treespec = tree.flatten(params)
            if any_sharded(leaves):
                return None
            gradients = leaves_like(grads, params, treespec)
            check_like("grads", gradients, leaves, lambda: tree.paths(params))
            if by_formula((*leaves, *gradients)):
                return leaves, treespec, gradients
            seen = self.known.keep(survey(leaves, gradients, (), ()), params, (), grads)
        with torch.no_grad():
            return seen.leaves, seen.treespec, seen.layout.fitted(seen.grads, seen.leaves)

    def count(self, state: EveryState) -> Any:
        return self.optimizer.count(state.inner)

    def monitor(self, state: EveryState) -> dict[str, Any]:
        return dict(self.optimizer.monitor(state.inner))

    def __repr__(self) -> str:
        return f"every({self.m}, {self.optimizer!r})"


def _added(state: EveryState, gradients: list[torch.Tensor], weight: float, *, overwrite: bool) -> list[torch.Tensor]:
    terms = accumulate.scale(gradients, weight)
    if int(state.calls) == 0:
        return terms
    acc = tree.leaves(state.pending) if overwrite else clone(tree.leaves(state.pending))
    accumulate.add_(acc, terms)
    return acc


def _term(leaf: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What `helios_fn.accumulate.scale` makes of a leaf, also where the leaf is 0-d and would turn into float64."""
    wide = accumulate.widen(leaf)
    factor = at(wide, weight)
    return torch.where(factor == 0, 0, wide * factor)


def _empty(inner: Tree, pending: Tree) -> EveryState:
    return EveryState(inner, pending, _total(0.0), torch.zeros((), dtype=torch.int64, device="cpu"))


def _total(weight: float) -> torch.Tensor:
    return torch.full((), weight, dtype=torch.float64, device="cpu")


def _checked_weight(weight: Any) -> float:
    value = float(weight)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"the weight of gradients must be finite and not negative, got {value}")
    return value
