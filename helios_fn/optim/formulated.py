"""The update of a native optimiser by its formula: traced, mapped, or recorded by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import tree
from ..accumulate import widen
from ..tracing import is_traced, stored
from ..types import Tree
from .formulas import once
from .rule import Rule, Scalars
from .schedules.base import rate_at
from .tensors import check_like, leaves_like


def formulated(
    rule: Rule,
    grads: Tree,
    count: torch.Tensor,
    slots: Tree,
    params: Tree,
    *,
    donate: bool,
    scale: torch.Tensor | None = None,
) -> tuple[Tree, torch.Tensor, Tree]:
    """The new params, count and slots; the rate is multiplied by ``scale``.

    Raises:
        ValueError: ``grads`` is not a tree like ``params``, or the slots are not those of ``rule``.
    """
    leaves, treespec = tree.flatten(params)
    gradients = leaves_like(grads, params, treespec)
    check_like("grads", gradients, leaves, lambda: tree.paths(params))
    memory = _memory(rule, leaves, treespec, slots)
    # Only where values are known may a schedule be any Python function.
    done = count if is_traced() else int(count)
    lr = rate_at(rule.lr, done)
    lr = lr if scale is None else scale * lr
    scalars = once(rule.scalars(done, lr), leaves)
    new = []
    for i, (leaf, grad) in enumerate(zip(leaves, gradients, strict=True)):
        held = list(memory[i].values())
        param, renewed = _updated(rule, leaf, grad, held, scalars)
        new += stored([param], [leaf], donate=donate)
        memory[i] = dict(zip(memory[i], stored(renewed, held, donate=donate), strict=True))
    (count,) = stored([count + 1], [count], donate=donate)
    if any(memory):  # the compiler cannot build trees of empty dicts
        slots = tree.unflatten(treespec, memory)
    return tree.unflatten(treespec, new), count, slots


def _memory(rule: Rule, leaves: Sequence[torch.Tensor], treespec: Any, slots: Tree) -> list[dict[str, torch.Tensor]]:
    """The slots of each parameter, in the order of their names."""
    names = [rule.names(leaf) for leaf in leaves]
    if not any(names):
        return [{} for _ in leaves]
    rows = treespec.flatten_up_to(slots)
    if any(tuple(sorted(row)) != own for row, own in zip(rows, names, strict=True)):
        raise ValueError(f"this opt_state was not made by {rule!r} for these params: it has other slots")
    return [{name: row[name] for name in own} for row, own in zip(rows, names, strict=True)]


def _updated(
    rule: Rule, param: torch.Tensor, grad: torch.Tensor, slots: Sequence[torch.Tensor], scalars: Scalars
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if param.is_complex():
        real, *rest = (torch.view_as_real(tensor) for tensor in (param, grad, *slots))
        new, renewed = _updated(rule, real, rest[0], rest[1:], scalars)
        return torch.view_as_complex(new), [torch.view_as_complex(slot) for slot in renewed]
    new, renewed = rule.formula(widen(param), widen(grad), [widen(slot) for slot in slots], scalars)
    return new.to(param.dtype), [slot.to(old.dtype) for slot, old in zip(renewed, slots, strict=True)]
