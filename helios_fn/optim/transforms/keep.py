"""The last gradients, kept where they can be looked at."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from ... import tree
from ...types import Tree
from ..base import Transform
from ..tensors import updatable_leaves
from ..text import call


class KeptState(NamedTuple):
    """The gradients of the last update, zeros before the first: a tree like the parameters."""

    grads: Tree


def keep_gradients() -> Transform:
    """Leave the gradients as they are, and keep the last ones in the state of the optimiser, to be looked at.

    They are those at this place of the chain: before clipping if it stands before it. They take as much memory as the
    parameters, and are saved in each checkpoint. Whatever reads them changes nothing of the training.

        optimizer = chain(keep_gradients(), clip_by_global_norm(1.0), adamw(3e-4))
        last = state.opt_state[0].grads
    """
    made = _Keep()
    return Transform(made.init, made.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Keep:
    def init(self, params: Tree) -> KeptState:
        leaves, treespec = updatable_leaves(params, sharded=True)
        return KeptState(tree.unflatten(treespec, [torch.zeros_like(leaf) for leaf in leaves]))

    def update(self, grads: Tree, state: KeptState, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, KeptState]:
        return grads, KeptState(tree.map(lambda grad, kept: grad.detach().to(kept.dtype), grads, state.grads))

    def __repr__(self) -> str:
        return call("keep_gradients", {})
