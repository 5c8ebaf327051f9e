"""Clipping each unit's gradient by the size of its weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ... import tree
from ...types import Tree
from ..base import Transform
from ..checks import positive
from ..tensors import check_unsharded
from ..text import call


def adaptive_clip(clipping: float = 0.01, *, eps: float = 1e-3) -> Transform:
    """Adaptive gradient clipping (AGC): bound the gradient of each unit relative to the norm of its weights.

    A unit is a row of a parameter of two or more dimensions, everything with one index in its first dimension
    (an output of a linear layer, a channel of a convolution); parameters of fewer dimensions are one unit. Where
    ``norm(grad) >= clipping * max(norm(param), eps)``, the gradient of the unit is scaled down to that norm. A
    gradient that is not finite stays so.

    The paper leaves the last linear layer alone: ``masked(adaptive_clip(), "!head.*")``.

    From [Brock et al.](https://arxiv.org/abs/2102.06171).

    Raises:
        ValueError: ``clipping`` or ``eps`` is not above 0.
    """
    clipper = _AdaptiveClip(positive("clipping", clipping), positive("eps", eps))
    return Transform(clipper.init, clipper.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _AdaptiveClip:
    clipping: float
    eps: float
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> Tree:
        for path, leaf in tree.items(params):
            check_unsharded(path, leaf)
        return ()

    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = self.flatten(grads)
        weights, _ = self.flatten(params)
        clipped = [self._clipped(grad, leaf) for grad, leaf in zip(leaves, weights, strict=True)]
        return tree.unflatten(treespec, clipped), state

    def _clipped(self, grad: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        bound = self.clipping * _unit_norms(param).clamp(min=self.eps)
        # Bounded away from 0, where the quotient would have no derivative. A factor of 1 keeps the bits.
        return grad * (bound / _unit_norms(grad).clamp(min=_TINY)).clamp(max=1.0)

    def __repr__(self) -> str:
        return call("adaptive_clip", {"clipping": self.clipping, "eps": self.eps})


_TINY = 1e-6


def _unit_norms(leaf: torch.Tensor) -> torch.Tensor:
    if leaf.dim() <= 1:
        return torch.linalg.vector_norm(leaf)
    return torch.linalg.vector_norm(leaf, dim=tuple(range(1, leaf.dim())), keepdim=True)
