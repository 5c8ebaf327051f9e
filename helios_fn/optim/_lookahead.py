"""Slow weights that follow the fast ones of another optimiser."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from .. import tree
from ..tracing import by_formula, is_traced
from ..types import Tree
from .base import Optimizer
from .checks import number, whole
from .formulas import toward
from .tensors import clone, updatable_leaves
from .wrapping import checked_optimizer, keywords


class LookaheadState(NamedTuple):
    """The inner state, and the slow weights: a tree like the parameters."""

    inner: Tree
    slow: Tree


def lookahead(optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> Optimizer:
    """Let ``optimizer`` make ``k`` updates, then go back to a point on the way: k steps forward, 1 step back.

    The parameters are the fast weights. After each ``k`` updates the slow weights move by
    ``slow += alpha * (params - slow)``, and the parameters go on from there; the inner state is kept. In between
    the slow weights, which the paper evaluates, are ``opt_state.slow``. ``count`` and ``monitor`` are the inner
    optimiser's, so a call that updates nothing (inside it `every`, or `skip_non_finite`) does not count.

    From [Zhang et al.](https://arxiv.org/abs/1907.08610).

    Raises:
        TypeError: ``optimizer`` is not an `Optimizer`, or ``k`` no integer.
        ValueError: ``k`` is below 1, or ``alpha`` not in [0, 1].
    """
    checked = checked_optimizer("lookahead", optimizer)
    if number("alpha", alpha, low=0.0) > 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha!r}")
    made = _Lookahead(checked, whole("k", k), float(alpha))
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Lookahead:
    optimizer: Optimizer
    k: int
    alpha: float
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)
    flatten_slow: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> LookaheadState:
        leaves, treespec = updatable_leaves(params)
        # Copies: the parameters may be donated.
        slow = clone([leaf.detach() for leaf in leaves])
        return LookaheadState(self.optimizer.init(params), tree.unflatten(treespec, slow))

    def update(
        self, grads: Tree, state: LookaheadState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, LookaheadState]:
        before = self.optimizer.count(state.inner)
        if is_traced():
            return self._traced(before, grads, state, params, weight, donate)
        slow, treespec = self.flatten_slow(state.slow)
        fast, inner = self.optimizer.update(grads, state.inner, params, **keywords(weight, donate))
        after = int(self.optimizer.count(inner))
        if after == before or after % self.k:
            return fast, LookaheadState(inner, state.slow)
        leaves, _ = self.flatten(fast)
        moved, fresh = self._met(leaves, slow, donate)
        return tree.unflatten(treespec, fresh), LookaheadState(inner, tree.unflatten(treespec, moved))

    def _met(
        self, fast: list[torch.Tensor], slow: list[torch.Tensor], donate: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The slow weights after a move, and parameters of their own that are equal to them."""
        if not slow:
            return slow, fast
        if by_formula([*fast, *slow]):
            moved = [toward(s, f, self.alpha) for s, f in zip(slow, fast, strict=True)]
            return moved, [leaf.clone() for leaf in moved]
        with torch.no_grad():
            # The order of `toward`, which rounds otherwise than torch.lerp.
            moved = list(torch._foreach_sub(fast, slow))
            torch._foreach_mul_(moved, self.alpha)
            if donate:
                torch._foreach_add_(slow, moved)
                torch._foreach_copy_(fast, slow)
                return slow, fast
            torch._foreach_add_(moved, slow)
            return moved, clone(moved)

    def _traced(
        self, before: Any, grads: Tree, state: LookaheadState, params: Tree, weight: Any, donate: bool
    ) -> tuple[Tree, LookaheadState]:
        fast, inner = self.optimizer.update(grads, state.inner, params, weight=weight)
        after = self.optimizer.count(inner)
        meet = (after != before) & (after % self.k == 0)
        pairs = zip(tree.tensors(state.slow), tree.tensors(fast), strict=True)
        moved = tree.with_tensors(state.slow, [toward(s, f, self.alpha) for s, f in pairs])
        slow = tree.select(meet, moved, state.slow)
        new = (tree.select(meet, moved, fast), LookaheadState(inner, slow))
        fresh, follows = tree.stored(new, (params, state), donate=donate)
        return fresh, follows

    def count(self, state: LookaheadState) -> Any:
        return self.optimizer.count(state.inner)

    def monitor(self, state: LookaheadState) -> dict[str, Any]:
        return dict(self.optimizer.monitor(state.inner))

    def __repr__(self) -> str:
        return f"lookahead({self.optimizer!r}, k={self.k}, alpha={self.alpha})"
