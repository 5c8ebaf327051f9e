"""Changing leaves of a tree by name, with every kind checked."""

from __future__ import annotations

import cmath
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from . import tree
from .dtensors import is_sharded
from .patterns import Chooser, closest, name_of
from .types import Tree


class Change(NamedTuple):
    """A leaf that was replaced: its name, and both values in words."""

    leaf: str
    old: str
    new: str


def override(state: Tree, changes: Mapping[str, Any]) -> Tree:
    """A copy of a state with other values for some leaves; structure, shapes, dtypes and devices stay.

        slower = hf.override(state, {"opt_state.hyper.lr": 1e-4})  # of hf.optim.tunable(...)
        silent = hf.override(state, {"params.head.*": torch.zeros(10)})

    The new state shares all other leaves with the old one, which is not changed.

    Args:
        state: any tree; usually a `TrainState`.
        changes: new values by the name of the leaf (the path with dots, as for `helios_fn.restore`), or by a shell
            pattern that stands for several. A leaf without dimensions takes a number, or a tensor like it; one with
            dimensions a tensor of its dtype and shape; a Python scalar one of its type.

    Raises:
        ValueError: a pattern matches no leaf (names those that are close), two match the same leaf, a name stands for
            two leaves, or a value does not fit into the leaf's shape or range.
        TypeError: a value is of another kind or dtype than its leaf.
    """
    return overridden(state, changes)[0]


def overridden(state: Tree, changes: Mapping[str, Any]) -> tuple[Tree, list[Change]]:
    """The same, and what was changed."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"changes maps names of leaves to new values, got {type(changes).__name__}")
    if strangers := [name for name in changes if not isinstance(name, str)]:
        raise TypeError(f"changes maps names of leaves, such as 'head.bias', to new values, got {strangers[0]!r}")
    leaves, treespec = tree.flatten(state)
    paths = tree.paths(state)
    places = {name_of(path): at for at, path in enumerate(paths)}
    twice = {name_of(path) for at, path in enumerate(paths) if places[name_of(path)] != at}
    found: list[Change] = []
    by: dict[str, str] = {}
    for pattern, value in changes.items():
        chosen = [name for name in places if name == pattern] or list(filter(Chooser([pattern]), places))
        if not chosen:
            raise ValueError(f"no leaf is called {pattern!r}; did you mean {closest(pattern, list(places))}?")
        for name in chosen:
            if by.setdefault(name, pattern) != pattern:
                raise ValueError(f"both {by[name]!r} and {pattern!r} change {name}: write each leaf once")
            if name in twice:
                both = " and ".join(path for path in paths if name_of(path) == name)
                raise ValueError(f"{name} is the name of {both}: nobody can tell which one is to change")
            old = leaves[places[name]]
            new = leaves[places[name]] = _fitted(name, old, value)
            found.append(Change(name, _in_words(old), _in_words(new)))
    return tree.unflatten(treespec, leaves), found


def _fitted(name: str, old: Any, value: Any) -> Any:
    """``value`` as a leaf like ``old``."""
    if isinstance(old, torch.Tensor):
        if is_sharded(old):
            raise TypeError(f"{name} is a sharded tensor, which cannot be overridden: write it before it is sharded")
        return _like(name, old, value)
    if type(old) is float and type(value) is int:
        return _as_float(name, value)
    if type(value) is not type(old):
        raise TypeError(f"{name} is {tree.describe(old)}: its new value must be of this type, got {_got(value)}")
    return value


def _as_float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is a float, into which {value!r} does not fit") from error


def _like(name: str, old: torch.Tensor, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dtype != old.dtype:
            raise TypeError(f"{name} is {tree.describe(old)}, got {tree.describe(value)}: convert it to {old.dtype}")
        if value.layout != old.layout or (value.is_meta and not old.is_meta):
            raise TypeError(f"{name} must be a tensor with plain memory, got {value.layout} on {value.device}")
        if value.shape != old.shape:
            raise ValueError(f"{name} is {tree.describe(old)}, got {tree.describe(value)}, of another shape")
        return value.detach().to(old.device, copy=True)
    if old.dim() != 0:
        raise TypeError(f"{name} is {tree.describe(old)}: its new value must be a tensor like it, got {_got(value)}")
    kinds: tuple[type, ...] = (bool,) if old.dtype == torch.bool else (int,)
    if old.is_floating_point() or old.is_complex():
        kinds = (int, float, complex) if old.is_complex() else (int, float)
    if type(value) not in kinds:
        raise TypeError(
            f"{name} is {tree.describe(old)}: its new value must be a number of its kind, got {_got(value)}"
        )
    try:
        new = torch.tensor(value, dtype=old.dtype)
        # Unsigned integers wrap around, and floats become infinite, without a word.
        inexact = old.is_floating_point() or old.is_complex()
        fits = cmath.isfinite(new.item()) or not cmath.isfinite(value) if inexact else new.item() == value
    except (RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(f"{name} is {tree.describe(old)}, into which {value!r} does not fit: {error}") from error
    if not fits:
        raise ValueError(f"{name} is {tree.describe(old)}, into which {value!r} does not fit")
    return new.to(old.device)


def _got(value: Any) -> str:
    known = isinstance(value, torch.Tensor | bool | int | float | complex | str)
    return tree.describe(value) if known else type(value).__name__


def _in_words(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        if leaf.dim() == 0 and leaf.device.type != "meta":
            return repr(leaf.item())
        return f"{tree.describe(leaf)} {tree.digest(leaf)[:16]}"
    return repr(leaf)
