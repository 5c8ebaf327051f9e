"""What transforms without memory share: a function of the leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ... import tree
from ...types import Tree
from ..base import Transform
from ..text import call

Leaves: TypeAlias = list[torch.Tensor]


def stateless(name: str, arguments: dict[str, Any], function: Callable[[Leaves], Leaves]) -> Transform:
    """The transform ``name(**arguments)`` that applies ``function`` to the leaves of the gradients.

    ``function`` writes to none of them; it may return the list that it was given.
    """
    made = _Stateless(name, arguments, function)
    return Transform(made.init, made.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Stateless:
    name: str
    arguments: dict[str, Any]
    function: Callable[[Leaves], Leaves]
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> Tree:
        return ()

    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = self.flatten(grads)
        if not leaves:
            return grads, state
        found = self.function(leaves)
        return (grads if found is leaves else tree.unflatten(treespec, found)), state

    def __repr__(self) -> str:
        return call(self.name, self.arguments)
