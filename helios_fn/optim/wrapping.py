"""What wrappers of optimisers share: their argument, a choice between two outcomes, and donated memory."""

from __future__ import annotations

from typing import Any

import torch

from .. import tree
from ..tracing import stored
from ..types import Tree
from .base import Optimizer, Transform, hint
from .formulas import pick
from .text import brief


def checked_optimizer(name: str, optimizer: Any) -> Optimizer:
    """``optimizer``, given to ``name()``.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    remedy = ": chain it with an optimiser" if isinstance(optimizer, Transform) else hint(optimizer)
    raise TypeError(f"{name}() wraps an Optimizer, got {brief(optimizer)}{remedy}")


def keywords(weight: Any, donate: bool) -> dict[str, Any]:
    """The keywords of an inner ``update``; an optimiser from elsewhere need not know ``donate``."""
    return {"weight": weight, "donate": True} if donate else {"weight": weight}


def chosen(condition: torch.Tensor, first: Tree, second: Tree) -> Tree:
    """``first`` where ``condition`` (0-d) holds, else ``second``: trees of one structure, compared by no value."""
    pairs = zip(tree.tensors(first), tree.tensors(second), strict=True)
    return tree.with_tensors(first, [a if a is b else pick(condition, a, b) for a, b in pairs])


def stored_tree(new: Tree, old: Tree, *, donate: bool) -> Tree:
    """`stored` of all tensors of a tree."""
    return tree.with_tensors(new, stored(tree.tensors(new), tree.tensors(old), donate=donate))
