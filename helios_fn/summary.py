"""What a state is made of: names, shapes, numbers of elements, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from . import tree
from .patterns import name_of
from .state import TrainState
from .text import plural, size, table
from .types import Tree


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of a summary.

    Attributes:
        name: its path with dots, such as ``params.0.weight``.
        shape: its lengths.
        dtype: such as ``torch.float32``.
        device: where it is.
        bytes: the memory that is its own: what an earlier leaf that begins at the same place has of it is that one's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """The tensors of a tree, in order; ``str`` makes a table of them.

    Attributes:
        leaves: all tensors.
        depth: how much of the names the table tells apart.
    """

    leaves: tuple[Leaf, ...]
    depth: int | None = None

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self.leaves)

    @property
    def elements(self) -> int:
        """How many numbers all of them hold, those in shared memory counted once for each name."""
        return sum(leaf.elements for leaf in self.leaves)

    @property
    def bytes(self) -> int:
        """The memory of all of them, shared memory counted once."""
        return sum(leaf.bytes for leaf in self.leaves)

    def below(self, name: str) -> Summary:
        """The part whose names are ``name`` or begin with it and a dot: ``summary(state).below("params")``."""
        return Summary(tuple(leaf for leaf in self.leaves if f"{leaf.name}.".startswith(f"{name}.")), self.depth)

    def __str__(self) -> str:
        """A line for each tensor, or for each name cut to ``depth`` parts, then one for each top-level name."""
        groups = _grouped(self.leaves, self.depth)
        tops = _grouped(self.leaves, 1)
        totals = tops if 1 < len(tops) < len(groups) else {}
        body = [_line(name, members) for name, members in groups.items()]
        ends = [_line(name, members) for name, members in totals.items()] + [_line("all", self.leaves)]
        lines = table([("name", "kind", "elements", "memory"), *body, *ends], right=[2, 3])
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1 : len(body) + 1], rule, *lines[len(body) + 1 :]])


def summary(state: Tree, *, depth: int | None = None) -> Summary:
    """What a state, or any other tree of tensors, is made of: ``print(summary(state))``.

    Nothing is computed and no tensor is read, so states on the meta device or under a ``FakeTensorMode`` can be
    summed up before there is memory for them. A tensor counts as many bytes as its elements need; where several leaves
    share memory, the first one has it.

    Args:
        state: a `TrainState`, or a tree such as its ``params``.
        depth: how many parts of the names the printed table tells apart: 1 gives the fields of a state, 2 the
            modules of a plain ``params`` dict; ``None`` each tensor.

    Raises:
        ValueError: ``depth`` is not positive, or the tree holds no tensor.
    """
    if depth is not None and (type(depth) is not int or depth < 1):
        raise ValueError(f"depth must be an integer of at least 1, or None for every tensor, got {depth!r}")
    found = Summary(tuple(_leaves(_named(state))), depth)
    if not found.leaves:
        raise ValueError(
            f"there is no tensor in this {type(state).__name__}: hand over a TrainState or a tree of tensors"
        )
    return found


def _named(state: Tree) -> Iterator[tuple[str, Any]]:
    """The leaves by name. Those of a state in the order of its fields, without what only counts."""
    if not isinstance(state, TrainState):
        yield from ((name_of(path), leaf) for path, leaf in tree.items(state))
        return
    for field in ("params", "buffers", "opt_state", "averages", "extra"):
        for path, leaf in tree.items(getattr(state, field)):
            yield f"{field}.{name_of(path)}".removesuffix("."), leaf


def _leaves(named: Iterable[tuple[str, Any]]) -> Iterator[Leaf]:
    seen: dict[tuple[Any, Any], int] = {}
    for name, leaf in named:
        if not isinstance(leaf, torch.Tensor):
            continue
        place, needed = _place(leaf), leaf.numel() * leaf.element_size()
        counted = seen.get(place, 0)
        seen[place] = max(needed, counted)
        yield Leaf(name, tuple(leaf.shape), leaf.dtype, leaf.device, max(0, needed - counted))


def _place(leaf: torch.Tensor) -> tuple[Any, Any]:
    """What two leaves have in common that are one memory; tensors without memory share it only with themselves."""
    # A subclass such as DTensor has no storage that could be asked for its address.
    if type(leaf) not in (torch.Tensor, torch.nn.Parameter) or leaf.is_meta:
        return 0, id(leaf)
    return leaf.untyped_storage().data_ptr(), leaf.storage_offset()


def _grouped(leaves: Iterable[Leaf], depth: int | None) -> dict[str, list[Leaf]]:
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(".".join(leaf.name.split(".")[:depth]), []).append(leaf)
    return groups


def _line(name: str, members: Iterable[Leaf]) -> tuple[str, str, str, str]:
    members = list(members)
    memory = sum(leaf.bytes for leaf in members)
    if len(members) == 1 and members[0].name == name:
        kind = f"{str(members[0].dtype).removeprefix('torch.')}{list(members[0].shape)}"
        memory_text = size(memory) if memory or not members[0].elements else "shared"
    else:
        kind, memory_text = plural(len(members), "tensor"), size(memory)
    return name, kind, f"{sum(leaf.elements for leaf in members):,}", memory_text
