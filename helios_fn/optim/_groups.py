"""Different optimisers for different parameters, told apart by their names."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch

from .. import tree
from ..patterns import closest, name_of
from ..tracing import is_traced
from ..types import Tree
from .base import Optimizer, hint
from .tensors import check_like, leaves_like, updatable_leaves
from .text import brief

DEFAULT = "default"
Members: TypeAlias = dict[str, dict[str, int]]
"""For each group the names of its parameters and their indices among the leaves."""


class GroupsState(NamedTuple):
    """The states of the groups' optimisers, by pattern; a frozen group has none.

    Each is that of a flat dict of the group's parameters by name: ``opt_state.parts['*.bias'].slots['head.bias']``.
    """

    parts: dict[str, Tree]


def groups(patterns: Mapping[str, Optimizer | None], *, default: Optimizer | None) -> Optimizer:
    """One optimiser for each group of parameters.

        optimizer = groups({"*.bias": adamw(3e-4, weight_decay=0.0), "embed.*": None}, default=adamw(3e-4))
        no_decay = dict.fromkeys(["*.bias", "*norm*"], adamw(3e-4, weight_decay=0.0))
        by_layer = {f"layers.{i}.*": adamw(3e-4 * 0.9 ** (12 - i)) for i in range(12)}

    A pattern is a shell pattern over the whole name of a parameter, its path with dots, such as ``layers.0.weight``
    (``*`` matches dots too); a path as `helios_fn.tree.paths` writes it serves as well. The first pattern that
    matches wins, ``default`` takes what none matches, and ``None`` freezes: those parameters stay as they are, and
    their gradients may be ``None``. What all groups share goes around them: ``chain(clip, groups(...))`` clips by the
    norm of all gradients, ``every(4, groups(...))`` accumulates for all.

    ``count`` is that of the group that has made the most updates. ``monitor`` has the default's values under their own
    names and those of the others with the pattern behind, as in ``learning_rate/*.bias``.

    Raises:
        TypeError: a pattern is not a string, or what it stands for neither an `Optimizer` nor ``None``.
        ValueError: there are no patterns; in ``init``, a pattern matches no parameter, or only some that
            earlier ones took.

    Example:
        >>> optimizer = hf.optim.groups({"*.bias": None}, default=hf.optim.sgd(1.0))
        >>> params = {"head.weight": torch.tensor([1.0]), "head.bias": torch.tensor([1.0])}
        >>> params, _ = optimizer.update({name: torch.ones(1) for name in params}, optimizer.init(params), params)
        >>> {name: param.item() for name, param in params.items()}
        {'head.weight': 0.0, 'head.bias': 1.0}
        >>> hf.optim.groups({"*.gain": None}, default=hf.optim.sgd(1.0)).init(params)
        Traceback (most recent call last):
            ...
        ValueError: the pattern '*.gain' matches no parameter; names close to it: 'head.bias', 'head.weight'
    """
    if not isinstance(patterns, Mapping) or not patterns:
        raise ValueError(
            f"groups() needs patterns and their optimisers, as in {{'*.bias': sgd(0.1)}}, got {patterns!r}"
        )
    for pattern, optimizer in {**patterns, DEFAULT: default}.items():
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern of groups() must be a string such as '*.bias', got {brief(pattern)}")
        if not isinstance(optimizer, Optimizer | None):
            raise TypeError(
                f"groups() needs an Optimizer or None for {pattern!r}, got {brief(optimizer)}{hint(optimizer)}"
            )
    if DEFAULT in patterns:
        raise ValueError(f"{DEFAULT!r} is no pattern: write groups(..., default=...)")
    # Compiled here, since regular expressions cannot be made inside a graph.
    made = _Groups(dict(patterns), default, {pattern: re.compile(fnmatch.translate(pattern)) for pattern in patterns})
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Groups:
    patterns: dict[str, Optimizer | None]
    default: Optimizer | None
    compiled: dict[str, re.Pattern[str]]
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)
    known: list[tuple[Any, Members]] = dataclasses.field(default_factory=list, compare=False)

    def init(self, params: Tree) -> GroupsState:
        leaves, _ = updatable_leaves(params, sharded=True)
        names = [name_of(path) for path in tree.paths(params)]
        members = self._members(params)
        for pattern in self.patterns:
            if not members[pattern]:
                raise ValueError(_explanation(pattern, list(self.patterns), names))
        own = {group: {name: leaves[i] for name, i in indices.items()} for group, indices in members.items()}
        return GroupsState({group: part.init(own[group]) for group, part in self._parts().items() if own[group]})

    def update(
        self, grads: Tree, state: GroupsState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, GroupsState]:
        leaves, treespec = self.flatten(params)
        gradients = leaves_like(grads, params, treespec)
        members = self._recalled(treespec, params)
        given: dict[str, Any] = {"weight": weight}
        if donate:
            given["donate"] = True
            # Before any group writes: each looks at its own gradients only.
            taken = [i for group in state.parts for i in members[group].values()]
            found, wanted = [gradients[i] for i in taken], [leaves[i] for i in taken]
            check_like("grads", found, wanted, lambda: [tree.paths(params)[i] for i in taken])
        new, parts = list(leaves), {}
        for group, part in self._parts(state).items():
            own = {name: leaves[i] for name, i in members[group].items()}
            their = {name: gradients[i] for name, i in members[group].items()}
            moved, parts[group] = part.update(their, state.parts[group], own, **given)
            for name, i in members[group].items():
                new[i] = moved[name]
        return tree.unflatten(treespec, new), GroupsState(parts)

    def count(self, state: GroupsState) -> Any:
        counts = [part.count(state.parts[group]) for group, part in self._parts(state).items()]
        if is_traced() and counts:
            return torch.stack(counts).amax()
        return max(counts, default=0)

    def monitor(self, state: GroupsState) -> dict[str, Any]:
        return {
            key if group == DEFAULT else f"{key}/{group}": value
            for group, part in self._parts(state).items()
            for key, value in part.monitor(state.parts[group]).items()
        }

    def _parts(self, state: GroupsState | None = None) -> dict[str, Optimizer]:
        """The groups that are not frozen, or those of them that have a state (the default may have no parameters)."""
        every = {**self.patterns, DEFAULT: self.default}
        return {
            group: part for group, part in every.items() if part is not None and (state is None or group in state.parts)
        }

    def _recalled(self, treespec: Any, params: Tree) -> Members:
        """The members, looked for once only while the structure stays the same."""
        if torch.compiler.is_compiling():
            return self._members(params)
        found = self.known[0] if self.known else None
        if found is None or found[0] is not treespec:
            found = (treespec, self._members(params))
            self.known[:] = [found]
        return found[1]

    def _members(self, params: Tree) -> Members:
        paths = tree.paths(params)
        names = [name_of(path) for path in paths]
        labels = names if len(set(names)) == len(names) else paths
        members: Members = {group: {} for group in (*self.patterns, DEFAULT)}
        for label, i in sorted(zip(labels, range(len(labels)), strict=True)):
            matching = [
                pattern
                for pattern, compiled in self.compiled.items()
                if pattern == paths[i] or compiled.match(names[i]) is not None
            ]
            members[matching[0] if matching else DEFAULT][label] = i
        return members

    def __repr__(self) -> str:
        return f"groups({self.patterns!r}, default={self.default!r})"


def _explanation(pattern: str, patterns: list[str], names: list[str]) -> str:
    """Why a pattern has no parameters of its own."""
    taken = fnmatch.filter(names, pattern)
    if taken:
        earlier = next(other for other in patterns if fnmatch.fnmatchcase(taken[0], other))
        return f"the pattern {pattern!r} matches only what earlier ones took, such as {taken[0]!r} by {earlier!r}"
    return f"the pattern {pattern!r} matches no parameter; names close to it: {closest(pattern, names)}"
