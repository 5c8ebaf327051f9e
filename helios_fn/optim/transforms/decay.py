"""Weight decay as a gradient transform."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ... import tree
from ...dtensors import any_sharded, around, local
from ...tracing import by_formula
from ...types import Tree
from ..base import Transform
from ..checks import number
from ..selection import Patterns, Selection
from ..text import call


def add_decayed_weights(weight_decay: float, mask: Patterns | None = None) -> Transform:
    """Add ``weight_decay * params`` to the gradients.

    Before an optimiser this is an L2 penalty, and has the bits of torch's ``weight_decay`` (not of ``AdamW``, whose
    decay is decoupled: it does not pass through the moments).

        add_decayed_weights(1e-4, mask=["!*.bias", "!*norm*"])      # all but biases and norms
        add_decayed_weights(1e-4, mask=lambda name: name.endswith("weight"))

    Args:
        weight_decay: the factor.
        mask: the parameters to decay, by patterns or a function of their names, see `masked`; by default all.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``weight_decay`` is negative; in ``init``, a pattern matches no parameter.
    """
    decay = _Decay(number("weight_decay", weight_decay, low=0.0), None if mask is None else Selection("mask", mask))
    return Transform(decay.init, decay.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Decay:
    weight_decay: float
    mask: Selection | None
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> Tree:
        if self.mask is not None:
            self.mask.check(params)
        return ()

    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = self.flatten(grads)
        weights, _ = self.flatten(params)
        chosen = [True] * len(leaves) if self.mask is None else self.mask(grads, treespec)
        indices = [i for i, is_chosen in enumerate(chosen) if is_chosen]
        decayed = self._decayed([leaves[i] for i in indices], [weights[i] for i in indices])
        found = list(leaves)
        for i, leaf in zip(indices, decayed, strict=True):
            found[i] = leaf
        return tree.unflatten(treespec, found), state

    def _decayed(self, grads: list[torch.Tensor], params: list[torch.Tensor]) -> list[torch.Tensor]:
        if any_sharded(grads):
            parts = self._decayed([local(leaf) for leaf in grads], [local(leaf) for leaf in params])
            return [around(part, leaf) for part, leaf in zip(parts, grads, strict=True)]
        if by_formula([*grads, *params]):
            return [torch.add(g, p, alpha=self.weight_decay) for g, p in zip(grads, params, strict=True)]
        return list(torch._foreach_add(grads, params, alpha=self.weight_decay)) if grads else grads

    def __repr__(self) -> str:
        given = {} if self.mask is None else {"mask": self.mask}
        return call("add_decayed_weights", {"weight_decay": self.weight_decay, **given})
