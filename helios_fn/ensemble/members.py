"""States stacked into one state, and taken apart again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from .. import tree
from ..state import TrainState
from ..types import Tree, Validation

STACKED = ("params", "buffers", "opt_state", "averages")
"""The fields of a `TrainState` whose tensors get a leading dimension of members; ``extra`` is inside `Members`."""


@tree.register
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Members:
    """What an ensemble of K members keeps in ``state.extra``.

    Attributes:
        keys: int64 of shape (K, 2), the root key of each member.
        active: bool of shape (K,). A member that is not active keeps its bits.
        first_bad: int64 of shape (K,), per member what ``first_bad`` is for a state alone.
        extra: the members' own ``extra``, stacked.
    """

    keys: torch.Tensor
    active: torch.Tensor
    first_bad: torch.Tensor
    extra: Tree


def stack(states: Sequence[TrainState]) -> TrainState:
    """One state of K members from K states that differ in nothing but the values of their tensors.

    All tensors of ``params``, ``buffers``, ``opt_state``, ``averages`` and ``extra`` get a leading dimension of
    size K; Python scalars among them are common to all members. ``extra`` becomes `Members`. The ensemble's
    own ``key``, which decides the order of shared data, is that of the first member. ``cursor`` and
    ``counters`` are those of the members; ``validation`` and ``metrics`` start empty, for they will be the
    ensemble's. Where the parameters are on an accelerator, all tensors but the keys come to lie there.

    The result is an ordinary `TrainState`: `run`, checkpoints and digests need to know nothing of it.

    Raises:
        ValueError: there are no states, or two of them differ in structure, shape, dtype, a Python scalar, or
            how far they have been trained; the message names the path.
        TypeError: something is not a `TrainState`, or is an ensemble already.

    Example:
        >>> states = [hf.init_state({"w": torch.tensor([value])}, seed=seed) for seed, value in enumerate((1.0, 2.0))]
        >>> hf.stack(states).params["w"].tolist()
        [[1.0], [2.0]]
    """
    states = list(states)
    _check_states(states)
    first = states[0]
    device = next(leaf.device for leaf in tree.leaves(first.params) if isinstance(leaf, torch.Tensor))
    stacked = {name: _stack_field([getattr(state, name) for state in states], name, device) for name in STACKED}
    members = Members(
        keys=torch.stack([state.key for state in states]),
        active=torch.ones(len(states), dtype=torch.bool, device=device),
        first_bad=torch.stack([state.first_bad.to(device) for state in states]),
        extra=_stack_field([state.extra for state in states], "extra", device),
    )
    return first.replace(
        **stacked,
        extra=members,
        first_bad=lowest_bad(members.first_bad),
        validation=Validation(metrics={}),
        metrics={},
    )


def unstack(state: TrainState) -> list[TrainState]:
    """The members as states of their own, which `run` could go on with alone; see `member`.

    Example:
        >>> states = [hf.init_state({"w": torch.tensor([value])}) for value in (1.0, 2.0)]
        >>> [hf.tree.equal(*pair) for pair in zip(states, hf.unstack(hf.stack(states)))]
        [True, True]
    """
    return [member(state, index) for index in range(size(state))]


def member(state: TrainState, index: int) -> TrainState:
    """One member of an ensemble as a state of its own, in memory of its own.

    It has its own key, its metrics, and the ensemble's cursor and counters; its ``validation`` is empty.

    Raises:
        TypeError: the state is not an ensemble.
        IndexError: there is no such member.
    """
    members, count = members_of(state), size(state)
    if not -count <= index < count:
        raise IndexError(f"there is no member {index} among {count}")
    index %= count

    def row(field: Tree) -> Tree:
        return tree.map(lambda leaf: leaf[index].clone() if isinstance(leaf, torch.Tensor) else leaf, field)

    ending = f"/{index}"
    metrics = {name.removesuffix(ending): value for name, value in state.metrics.items() if name.endswith(ending)}
    return state.replace(
        **{name: row(getattr(state, name)) for name in STACKED},
        key=members.keys[index].clone(),
        first_bad=members.first_bad[index].clone(),
        extra=row(members.extra),
        validation=Validation(metrics={}),
        metrics={name: value.clone() for name, value in metrics.items()},
    )


def all_stopped(state: TrainState) -> bool:
    """Whether no member is active any more; made to be handed to `run` as ``should_stop``."""
    return not bool(members_of(state).active.any())


def size(state: TrainState) -> int:
    """The number of members."""
    return len(members_of(state).active)


def members_of(state: Any) -> Members:
    """What makes a state an ensemble.

    Raises:
        TypeError: it is none.
    """
    members = state.extra if isinstance(state, TrainState) else None
    if not isinstance(members, Members):
        got = "a state that is not one" if isinstance(state, TrainState) else tree.describe(state)
        raise TypeError(f"this needs an ensemble, got {got}: make it by hf.stack([state, state, ...])")
    return members


def lowest_bad(first_bad: torch.Tensor) -> torch.Tensor:
    """The first iteration in which any member went bad, or -1: int64, 0-d."""
    never = torch.iinfo(torch.int64).max
    lowest = torch.where(first_bad < 0, never, first_bad).amin()
    return torch.where(lowest == never, -1, lowest)


def path_in(field: str, path: str) -> str:
    """A path below a field: ``params['a']``, ``extra.a``, ``extra``."""
    return field + (path if path.startswith("[") or not path else f".{path}")


def _check_states(states: list[TrainState]) -> None:
    if not states:
        raise ValueError("an ensemble needs at least one state")
    for index, state in enumerate(states):
        if not isinstance(state, TrainState):
            raise TypeError(f"states[{index}] must be a TrainState, got {tree.describe(state)}")
        if isinstance(state.extra, Members):
            raise TypeError(f"states[{index}] is an ensemble already: stack the members of all, hf.unstack(state)")
    first = states[0]
    for index, state in enumerate(states[1:], start=1):
        for name in ("cursor", "counters"):
            here, there = getattr(first, name), getattr(state, name)
            if not tree.equal(here, there):
                raise ValueError(
                    f"all members advance together, but {name} is {here} in states[0] and {there} in states[{index}]: "
                    "stack states that have been trained equally far"
                )


def _stack_field(fields: list[Tree], name: str, device: torch.device) -> Tree:
    rows = [tree.leaves(field) for field in fields]
    _check_alike(fields, rows, name)
    found = [_stack_leaf(column, device) for column in zip(*rows, strict=True)]
    return tree.unflatten(tree.structure(fields[0]), found)


def _stack_leaf(column: Sequence[Any], device: torch.device) -> Any:
    if not isinstance(column[0], torch.Tensor):
        return column[0]
    # Counts that a state alone keeps on the CPU would meet tensors of the accelerator in one mapped operation.
    return torch.stack([leaf.detach().to(device) for leaf in column])


def _check_alike(fields: list[Tree], rows: list[list[Any]], name: str) -> None:
    """Check that members differ in the values of tensors alone."""
    for index, (field, row) in enumerate(zip(fields, rows, strict=True)):
        if tree.structure(field) != tree.structure(fields[0]):
            raise ValueError(_other_structure(fields[0], field, name, index))
        for path, here, there in zip(tree.paths(field), rows[0], row, strict=True):
            if _kind(here) != _kind(there):
                remedy = (
                    "members of one ensemble have equal shapes and dtypes; train others in an ensemble of their own"
                    if isinstance(here, torch.Tensor)
                    else "Python scalars are common to all members; make it a tensor if it is to differ"
                )
                raise ValueError(
                    f"{path_in(name, path)} is {tree.describe(here)} in states[0] and {tree.describe(there)} in "
                    f"states[{index}]: {remedy}"
                )


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.dtype
    return type(leaf), tree.scalar_bytes(leaf)


def _other_structure(first: Tree, other: Tree, name: str, index: int) -> str:
    here, there = tree.paths(first), tree.paths(other)
    missing, unknown = sorted(set(here) - set(there)), sorted(set(there) - set(here))
    if missing:
        difference = f"states[{index}] has no {path_in(name, missing[0])}"
    elif unknown:
        difference = f"states[0] has no {path_in(name, unknown[0])}, but states[{index}] has"
    else:
        difference = f"{name} has other containers in states[{index}] than in states[0]"
    return f"members of one ensemble have one structure, but {difference}: make all by the same model and optimiser"
