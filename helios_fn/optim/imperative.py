"""One torch optimiser for the time of one update: built, given its memory, stepped, read out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import tree
from ..signature import Signature
from .tensors import clone


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """What a torch optimiser remembers: a dict of slots per parameter, and the settings that it changed."""

    slots: list[dict[str, Any]]
    settings: dict[str, Any]

    def copy(self) -> Memory:
        """A copy whose tensors are private."""
        return self._rebuilt(_cloned)

    def blank(self) -> Memory:
        """Placeholders of the same structure: zero everywhere."""
        return self._rebuilt(lambda leaves: [_zero(leaf) for leaf in leaves])

    def contents(self) -> dict[str, Any]:
        """The memory as a tree."""
        return {"settings": self.settings, "slots": self.slots}

    def _rebuilt(self, function: Callable[[list[Any]], list[Any]]) -> Memory:
        leaves, treespec = tree.flatten(self.contents())
        return Memory(**tree.unflatten(treespec, function(leaves)))


class Kind:
    """What a memory of a class is like: structure, types and placement, learned once and recognised from then on.

    ``spares_gradients`` is whether the class leaves gradients alone, ``None`` while nobody has looked.
    """

    __slots__ = ("_flatten", "_learned", "spares_gradients")

    def __init__(self) -> None:
        self._flatten = tree.Flattener()
        self._learned: tuple[Any, list[type], Signature] | None = None
        self.spares_gradients: bool | None = None

    def learn(self, memory: Memory) -> None:
        """Remember the kind of ``memory``."""
        leaves, treespec = self._flatten.outside(memory.contents())
        self._learned = (treespec, [type(leaf) for leaf in leaves], Signature(_tensors(leaves)))

    def matches(self, memory: Memory) -> bool:
        """Whether another is of the kind that was learned last."""
        if self._learned is None:
            return False
        leaves, found = self._flatten.outside(memory.contents())
        treespec, types, signature = self._learned
        return treespec == found and types == [type(leaf) for leaf in leaves] and signature.matches(_tensors(leaves))


class Imperative:
    """A torch optimiser over tensors that it may overwrite.

    Raises:
        TypeError: the class makes several parameter groups of one list of parameters.
    """

    def __init__(self, cls: type[torch.optim.Optimizer], hyper: dict[str, Any], leaves: Sequence[torch.Tensor]) -> None:
        self.leaves = [leaf.requires_grad_(True) for leaf in leaves]
        self.optimizer = cls(self.leaves, **hyper)
        if len(self.optimizer.param_groups) != 1:
            raise TypeError(f"{cls.__name__} makes {len(self.optimizer.param_groups)} parameter groups, not one")
        self._made_with = dict(self._group)

    @property
    def _group(self) -> dict[str, Any]:
        return self.optimizer.param_groups[0]

    def install(self, memory: Memory) -> None:
        """Go on from ``memory``, whose tensors will be overwritten."""
        for leaf, slots in zip(self.leaves, memory.slots, strict=True):
            self.optimizer.state[leaf] = dict(slots)
        self._group.update(memory.settings)

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        """One update with ``grads``, which may be overwritten."""
        for leaf, grad in zip(self.leaves, grads, strict=True):
            leaf.grad = grad
        self.optimizer.step()
        for leaf in self.leaves:
            leaf.grad = None

    def memory(self, known: dict[str, Any]) -> Memory:
        """What the optimiser remembers now; settings that are ``known`` to change are always part of it.

        Raises:
            TypeError: it keeps state for something that is not a parameter.
        """
        state = self.optimizer.state
        ours = {id(leaf) for leaf in self.leaves}
        foreign = [key for key in state if id(key) not in ours]
        if foreign:
            raise TypeError(
                f"{type(self.optimizer).__name__} keeps state for {foreign[0]!r:.60}, which is no parameter"
            )
        settings = {
            name: value
            for name, value in self._group.items()
            if name != "params" and (name in known or not _same(self._made_with.get(name), value))
        }
        return Memory([dict(state.get(leaf, {})) for leaf in self.leaves], settings)

    def release(self) -> list[torch.Tensor]:
        """The parameters as plain tensors."""
        return [leaf.requires_grad_(False) for leaf in self.leaves]


def _tensors(leaves: list[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    return type(left) is type(right) and not isinstance(left, torch.Tensor) and bool(left == right)


def _cloned(leaves: list[Any]) -> list[Any]:
    copies = iter(clone([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]))
    return [next(copies) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _zero(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, torch.Tensor) else type(leaf)()
