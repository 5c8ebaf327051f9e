"""How the tensors of an update lie in memory: checked in full once, recognised from then on.

Not a nicety: torch's fused CPU kernels walk raw memory. Where strides differ they pair the wrong elements
without an error (gradients often are transposed views), and where shapes or devices differ they touch
foreign memory. A full check costs as much as the update of a small network, so its result is kept together
with a `Signature` of the tensors that it holds for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import tree
from ..signature import Signature
from ..types import Tree
from .tensors import clone

Index: TypeAlias = slice | tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Tensors that one kernel takes together: where its parameters are, and for each name its slots."""

    params: Index
    slots: tuple[Index, ...] = ()

    def parts(self, held: list[Tensor], grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """The parameters, their gradients, and for each name their slots."""
        index = self.params
        if isinstance(index, slice):
            return held[index], grads[index], [held[slot] for slot in self.slots]  # type: ignore[index]
        return take(held, index), take(grads, index), [take(held, slot) for slot in self.slots]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What a full check has found out about the tensors of an update: ``held`` (to be overwritten) and ``grads``.

    ``held`` are the parameters and behind them the slots; ``grads`` are for the parameters. ``misfits`` are the
    indices of gradients that lie in memory unlike their parameters, ``strays`` pairs of a slot that does
    and its parameter. Where ``solid`` is false, ``held`` cannot be overwritten where it is.
    """

    signature: Signature
    groups: tuple[Group, ...]
    misfits: tuple[int, ...]
    strays: tuple[tuple[int, int], ...]
    solid: bool

    def own(self, held: list[torch.Tensor], grads: list[torch.Tensor], *, donate: bool) -> list[torch.Tensor]:
        """``held`` to be overwritten: itself where it is ``donate``-d and can be, else private copies."""
        mine = held if donate and self.solid and _apart(held, grads) else clone(held)
        return _laid(mine, mine, self.strays) if self.strays else mine

    def fitted(self, grads: list[torch.Tensor], own: list[torch.Tensor]) -> list[torch.Tensor]:
        """``grads``, each laid out in memory like its parameter."""
        return _laid(grads, own, [(i, i) for i in self.misfits]) if self.misfits else grads


def take(items: list[torch.Tensor], index: Index) -> list[torch.Tensor]:
    """The items at ``index``."""
    return items[index] if isinstance(index, slice) else [items[i] for i in index]


def survey(
    held: list[torch.Tensor], grads: list[torch.Tensor], slots: Sequence[tuple[int, int]], groups: tuple[Group, ...]
) -> Layout:
    """The layout of tensors whose shapes, dtypes and devices are right.

    ``slots`` are pairs of indices into ``held``: a slot of a parameter's shape, and the parameter.
    """
    # A private copy keeps the strides where it can; where it cannot, these are what counts.
    strides = [torch.empty_like(leaf, device="meta").stride() for leaf in held]
    return Layout(
        signature=Signature([*held, *grads]),
        groups=groups,
        misfits=tuple(i for i, grad in enumerate(grads) if grad.stride() != strides[i] or _pending(grad)),
        strays=tuple((i, j) for i, j in slots if strides[i] != strides[j]),
        solid=all(
            leaf.stride() == stride and not (leaf.requires_grad or leaf.is_inference() or _pending(leaf))
            for leaf, stride in zip(held, strides, strict=True)
        ),
    )


class Seen(NamedTuple):
    """The trees of an update taken apart, with their structures, and the layout that is known to hold for them."""

    leaves: list[torch.Tensor]
    memory: list[torch.Tensor]
    grads: list[torch.Tensor]
    treespec: Any
    memory_spec: Any
    layout: Layout


class Known:
    """The layout that was found last, for trees of given structures."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[Any, Any, Layout] | None = None

    def recall(self, params: Tree, slots: Tree, grads: Tree) -> Seen | None:
        """The trees taken apart, if the layout holds for them too."""
        if self._last is None:
            return None
        treespec, memory_spec, layout = self._last
        try:
            leaves, memory = treespec.flatten_up_to(params), memory_spec.flatten_up_to(slots)
            gradients = treespec.flatten_up_to(grads)
        except ValueError:
            return None
        # This also refuses subtrees in the places of leaves, which "up to" lets pass.
        matching = layout.signature.matches([*leaves, *memory, *gradients])
        return Seen(leaves, memory, gradients, treespec, memory_spec, layout) if matching else None

    def keep(self, layout: Layout, params: Tree, slots: Tree, grads: Tree) -> Seen:
        """Remember ``layout``."""
        leaves, treespec = tree.flatten(params)
        memory, memory_spec = tree.flatten(slots)
        self._last = (treespec, memory_spec, layout)
        gradients: list[Any] = treespec.flatten_up_to(grads)
        return Seen(leaves, memory, gradients, treespec, memory_spec, layout)


def _pending(tensor: torch.Tensor) -> bool:
    """Whether a conjugation or a change of sign is still to be done, of which raw memory does not tell."""
    return tensor.is_conj() or tensor.is_neg()


def _laid(
    tensors: list[torch.Tensor], likes: list[torch.Tensor], pairs: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """``tensors``, those at the first indices copied into the memory layout of ``likes`` at the second."""
    fitting = [torch.empty_like(likes[j]) for _, j in pairs]
    torch._foreach_copy_(fitting, [tensors[i] for i, _ in pairs])
    laid = list(tensors)
    for (i, _), tensor in zip(pairs, fitting, strict=True):
        laid[i] = tensor
    return laid


def _apart(held: list[torch.Tensor], grads: list[torch.Tensor]) -> bool:
    """Whether no two tensors start at one place, as tied weights do."""
    places = {*map(Tensor.data_ptr, held), *map(Tensor.data_ptr, grads)}
    return len(places) == len(held) + len(grads)
