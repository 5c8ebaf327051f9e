"""No update from gradients that are not finite."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from .. import tree
from ..finiteness import all_finite
from ..tracing import is_traced
from ..types import Tree
from .base import Optimizer
from .wrapping import checked_optimizer, keywords


class SkipState(NamedTuple):
    """The inner state, and how many updates were skipped: in all, and since the last that was made.

    Both are int64, 0-d, on the CPU.
    """

    inner: Tree
    skipped: torch.Tensor
    in_a_row: torch.Tensor


def skip_non_finite(optimizer: Optimizer) -> Optimizer:
    """Make no update at all where a gradient is NaN or infinite.

    Then the parameters and the inner state, its count and its transforms' memory included, stay as they are, so
    schedules and averages do not advance either; only the two counters of `SkipState` do. ``monitor`` adds
    ``skipped_updates`` to what the inner optimiser monitors. An update that itself makes parameters that are not
    finite is not looked for.

    Put it around everything that is to be skipped: ``skip_non_finite(chain(clip, adamw(...)))``. Inside
    `every` it skips the update of a mean that is not finite, around `every` a single call. Gradients on an
    accelerator are waited for; in a compiled region the update is made and then selected or not.

    Raises:
        TypeError: ``optimizer`` is not an `Optimizer`.
    """
    made = _Skip(checked_optimizer("skip_non_finite", optimizer))
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Skip:
    optimizer: Optimizer
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> SkipState:
        return SkipState(self.optimizer.init(params), _zero(), _zero())

    def update(
        self, grads: Tree, state: SkipState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, SkipState]:
        leaves, treespec = self.flatten(grads)
        finite = all_finite(leaves)
        if is_traced() and isinstance(finite, torch.Tensor):
            # Zeros instead: where the update is not selected, NaN would still reach derivatives.
            grads = tree.unflatten(treespec, [torch.where(finite, leaf, 0) for leaf in leaves])
            return self._selected(finite, grads, state, params, weight, donate)
        if not finite:
            return params, SkipState(state.inner, state.skipped + 1, state.in_a_row + 1)
        params, inner = self.optimizer.update(grads, state.inner, params, **keywords(weight, donate))
        return params, SkipState(inner, state.skipped, torch.zeros_like(state.in_a_row))

    def _selected(
        self, finite: torch.Tensor, grads: Tree, state: SkipState, params: Tree, weight: Any, donate: bool
    ) -> tuple[Tree, SkipState]:
        updated = self.optimizer.update(grads, state.inner, params, weight=weight)
        new, inner = tree.select(finite, updated, (params, state.inner))
        missed = (~finite).to(state.skipped.device)
        after = SkipState(inner, state.skipped + missed, (state.in_a_row + 1) * missed)
        params, after = tree.stored((new, after), (params, state), donate=donate)
        return params, after

    def count(self, state: SkipState) -> Any:
        return self.optimizer.count(state.inner)

    def monitor(self, state: SkipState) -> dict[str, Any]:
        skipped = state.skipped.to(torch.float64) if is_traced() else float(state.skipped)
        return {**self.optimizer.monitor(state.inner), "skipped_updates": skipped}

    def __repr__(self) -> str:
        return f"skip_non_finite({self.optimizer!r})"


def _zero() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")
