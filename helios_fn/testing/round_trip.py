"""The law of the round trip: what is loaded is what was saved, in every respect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import tree
from ..checkpoint import Store
from ..state import OUTPUT_ONLY, TrainState, init_state
from .examples import check_count, for_all
from .folders import temporary_folder
from .values import differences
from .verdicts import LawBroken

_CAUSES = """Look at how the tree is made:
  - a container of your own keeps values outside of its leaves: make it a frozen dataclass with hf.tree.register
  - a container of your own makes its leaves anew when it is put together: __init__ and __post_init__ must keep them
  - a value is no tensor and no plain Python scalar, so that it cannot be saved exactly"""


def check_round_trip(state: Any, *, examples: int | None = None) -> None:
    """Check that ``load(save(state))`` equals ``state``: bits, dtypes, strides, sharing of memory, structure.

    The file is loaded into a template whose values are all others, so nothing can come from there.

    Args:
        state: a `TrainState`, or any other tree, such as what you mean to keep in ``state.extra``.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about thirty in a second
            for ten leaves) of states of this structure with other values: NaN, infinities, zeros of both signs,
            denormals, large integers, transposed and shared leaves.

    Raises:
        LawBroken: something is lost; names the first leaf and both values.
        TypeError: a leaf cannot be saved exactly; names it and the remedy.
    """
    check_count(examples)
    whole = state if isinstance(state, TrainState) else init_state({"unused": torch.zeros(1)}, extra=state)
    if examples is None:
        _check(whole)
        return
    from .strategies import states

    for_all(states(whole), _check, examples)


def _check(state: TrainState) -> None:
    again = tree.unflatten(tree.structure(state), tree.leaves(state))
    _compare(state, again, "taken apart and put together again")
    with temporary_folder() as folder:
        store = Store(Path(folder), "round-trip")
        counters = state.counters
        store.save(
            state,
            epoch=state.cursor.epoch,
            iteration=counters.iteration,
            micro_step=counters.micro_step,
            record={},
            free=OUTPUT_ONLY,
        )
        found = store.newest()
        assert found is not None
        loaded = store.load(found, _other_values(state), free=OUTPUT_ONLY)
    _compare(state, loaded, "saved and loaded")
    _compare_memory(state, loaded)


def _compare(state: TrainState, other: TrainState, how: str) -> None:
    lines = differences(state, other)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise LawBroken(f"a state that is {how} differs:{listed}\n{_CAUSES}")
    here, there = (_hidden(each) for each in (state, other))
    for path, value in here.items():
        if there.get(path) != value:
            raise LawBroken(
                f"a state that is {how} has lost {path}, which is no leaf of it: {value} became "
                f"{there.get(path, 'absent')}\n{_CAUSES}"
            )


def _compare_memory(state: TrainState, loaded: TrainState) -> None:
    for (path, old), new in zip(tree.items(state), tree.leaves(loaded), strict=True):
        if isinstance(old, torch.Tensor) and old.layout is torch.strided and old.stride() != new.stride():
            raise LawBroken(f"{path} has strides {old.stride()}, and {new.stride()} after it was saved and loaded")
    paths = tree.paths(state)
    for here, there in zip(sharing(state), sharing(loaded), strict=False):
        if here != there:
            names = " and ".join(paths[at] for at in here)
            raise LawBroken(f"{names} share memory, and no longer do so after they were saved and loaded")


def sharing(state: Any) -> list[list[int]]:
    """Which leaves share memory: groups of positions, of one leaf each where none do."""
    groups: dict[Any, list[int]] = {}
    for position, leaf in enumerate(tree.leaves(state)):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and leaf.numel():
            groups.setdefault((leaf.device, leaf.untyped_storage().data_ptr()), []).append(position)
    return sorted(groups.values())


def _other_values(state: TrainState) -> TrainState:
    """A template of the same structure, shapes and dtypes that has none of the values."""

    def other(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.zeros_like(leaf) if leaf.count_nonzero() else torch.ones_like(leaf)
        return {bool: not leaf, int: 7, float: 0.5, complex: 1j, str: "?"}.get(type(leaf), leaf)

    return tree.map(other, state)


def _hidden(node: Any, path: str = "state") -> dict[str, str]:
    """The plain values in attributes of containers of the user's own, which need not all be leaves."""
    found: dict[str, str] = {}
    if isinstance(node, dict):
        children = {f"{path}[{key!r}]": child for key, child in node.items()}
    elif isinstance(node, list | tuple):
        names = getattr(node, "_fields", range(len(node)))
        children = {f"{path}.{name}" if isinstance(name, str) else f"{path}[{name}]": child
                    for name, child in zip(names, node, strict=True)}  # fmt: skip
    elif isinstance(node, torch.Tensor) or not hasattr(node, "__dict__"):
        return {}
    else:
        children = {f"{path}.{name}": child for name, child in vars(node).items()}
        found = {name: repr(value) for name, value in children.items() if isinstance(value, int | float | str | bool)}
    for name, child in children.items():
        found |= _hidden(child, name)
    return found
