"""Gradient clipping."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from .. import tree
from ..types import Tree
from .base import Transform
from .checks import positive
from .text import call


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most ``max_norm``.

    The factor is ``min(max_norm / (norm + 1e-6), 1)``, where ``norm`` is the norm of the vector of the
    tensors' norms, in the dtype of the gradients; it multiplies also where it is 1. These are the bits
    of ``torch.nn.utils.clip_grad_norm_`` over the same tensors in the same (canonical) order. Nothing is
    hidden: if a gradient is not finite, neither is the result.

    Inside `every` the accumulated mean is clipped, before it each call's gradients are.

    From [Pascanu, Mikolov and Bengio](https://arxiv.org/abs/1211.5063).

    Raises:
        ValueError: ``max_norm`` is not above 0.
    """
    clipper = _GlobalNorm(positive("max_norm", max_norm))
    return Transform(clipper.init, clipper.update)


def clip_by_value(limit: float) -> Transform:
    """Clamp each element of the gradients to ``[-limit, limit]``; NaN stays NaN.

    These are the bits of ``torch.nn.utils.clip_grad_value_``.

    Raises:
        ValueError: ``limit`` is not above 0.
    """
    clipper = _Value(positive("limit", limit))
    return Transform(clipper.init, clipper.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _GlobalNorm:
    max_norm: float

    def init(self, params: Tree) -> Tree:
        return ()

    @torch.no_grad()
    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = tree.flatten(grads)
        if not leaves:
            return grads, state
        # Clamped on the device: no test of the norm on the host.
        factor = torch.clamp(self.max_norm / (get_total_norm(leaves) + 1e-6), max=1.0)
        return tree.unflatten(treespec, torch._foreach_mul(leaves, factor)), state

    def __repr__(self) -> str:
        return call("clip_by_global_norm", {"max_norm": self.max_norm})


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    limit: float

    def init(self, params: Tree) -> Tree:
        return ()

    @torch.no_grad()
    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = tree.flatten(grads)
        if not leaves:
            return grads, state
        clamped = torch._foreach_clamp_min(leaves, -self.limit)
        torch._foreach_clamp_max_(clamped, self.limit)
        return tree.unflatten(treespec, clamped), state

    def __repr__(self) -> str:
        return call("clip_by_value", {"limit": self.limit})
