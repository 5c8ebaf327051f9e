"""The purity guard: notices a step that writes to its input, draws from a global generator or changes structure.

The first steps of each process are checked in full. Later ones are sampled by the tensors' version
counters, a few leaves per step in rotation, so that the check costs next to nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import random, tree
from ..checkpoint import check_saveable
from ..dtensors import local
from ..errors import PurityError
from ..state import OUTPUT_ONLY, TrainState
from ..types import Step

_LEAVES_PER_STEP = 2


class PurityGuard:
    """Calls a step and checks that the call was pure.

    Args:
        step: the step to guard.
        full_checks: how many first calls are checked in full.
    """

    def __init__(self, step: Step, full_checks: int) -> None:
        self._step = step
        self._remaining = full_checks
        self._turns: Iterator[list[str]] = iter(())
        self._watch_all = False

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """The step's result.

        Raises:
            PurityError: the call was not pure; names the leaf or the generator, and the remedy.
            TypeError: the step returned something else than a `TrainState`, or one that cannot be saved.
        """
        if self._remaining > 0:
            self._remaining -= 1
            return self._call_checked(state, batch)
        if self._watch_all:
            self._watch_all = False
            watched = _tensors(tree.leaves(state))
        else:
            watched = self._sample(state.params)
        before = [leaf._version for leaf in watched]
        new = self._step(state, batch)
        if before != [leaf._version for leaf in watched]:
            written = next(leaf for leaf, version in zip(watched, before, strict=True) if leaf._version != version)
            raise _mutated("step", _path_of(written, state))
        if type(new) is not TrainState:
            raise _not_a_state(new)
        return new

    def donating(self, state: TrainState, batch: Any) -> TrainState:
        """The result of a step that may overwrite ``state``; the first calls, checked in full, leave it as it is."""
        if self._remaining > 0 or self._watch_all:
            return self(state, batch)
        new = self._step.donating(state, batch)  # type: ignore[attr-defined]  # the caller knows that it can
        if type(new) is not TrainState:
            raise _not_a_state(new)
        return new

    def watch_next(self) -> None:
        """Look at the version counters of all leaves in the next call: its input is a state that was saved."""
        self._watch_all = True

    def _sample(self, params: Any) -> list[torch.Tensor]:
        # Parameters are what careless steps write to, and cheap to find when they are a dict. What else a
        # step may write to is looked at after each save.
        if type(params) is not dict:
            return []
        turn = next(self._turns, None)
        if turn is None:
            names = list(params)
            turns = [names[at : at + _LEAVES_PER_STEP] for at in range(0, len(names), _LEAVES_PER_STEP)]
            self._turns = itertools.cycle(turns)
            turn = next(self._turns, [])
        return _tensors([params.get(name) for name in turn])

    def _call_checked(self, state: TrainState, batch: Any) -> TrainState:
        inputs = {"state": state, "batch": batch}
        before = _fingerprints(inputs)
        ambient = random.ambient_fingerprint()
        new = self._step(state, batch)
        drawn = random.drawn(ambient, random.ambient_fingerprint())
        if drawn:
            raise PurityError(
                f"the step drew from global random state ({', '.join(drawn)}) outside a keyed scope, so a resumed run "
                "would differ. Draw inside `with hf.random.scope(hf.step_key(state, 'name')):`, or build the step "
                "with hf.make_step, which opens a scope for the whole loss_fn"
            )
        after = _fingerprints(inputs)
        for path in {**before, **after}:  # in the order of the tree, so that the same one is named every time
            if before.get(path) != after.get(path):
                place = path.removeprefix("['state']").removeprefix(".").replace("['batch']", "batch")
                raise _mutated("step", place)
        check_same_structure(state, new)
        check_saveable(new, free=OUTPUT_ONLY, sharded=True)
        return new


def check_same_structure(state: TrainState, new: Any) -> None:
    """Check that a step kept the structure, shapes and dtypes of the state, and left the driver's fields alone.

    Raises:
        TypeError: ``new`` is not a `TrainState`.
        PurityError: something changed that must not; names the paths.
    """
    if type(new) is not TrainState:
        raise _not_a_state(new)
    for field in ("cursor", "counters", "validation", "key"):
        if not tree.equal(getattr(state, field), getattr(new, field)):
            raise PurityError(f"the step changed state.{field}, which only the driver may advance: leave it as it is")
    for name, value in new.metrics.items():
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            raise PurityError(f"metrics[{name!r}] must be a 0-d tensor, got {tree.describe(value)}: use .mean()")
        if value.requires_grad:
            raise PurityError(f"metrics[{name!r}] still holds the autograd graph: use .detach()")
    check_kinds(kinds(state), new)


class Kinds(NamedTuple):
    """What must not change during a run: the structure of the state, and the type of each leaf."""

    structure: Any
    leaves: list[Any]

    def by_path(self) -> dict[str, str]:
        """The leaves in words."""
        places = tree.items(tree.unflatten(self.structure, range(len(self.leaves))))
        return {path: _in_words(self.leaves[place]) for path, place in places}


def kinds(state: TrainState) -> Kinds:
    """The `Kinds` of a state, without the parts of it whose structure is not known before training."""
    cursor = state.cursor._replace(position=None)
    validation = state.validation._replace(metrics={})
    leaves, structure = tree.flatten(state.replace(metrics={}, cursor=cursor, validation=validation))
    return Kinds(
        structure, [(leaf.dtype, leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves]
    )


def check_kinds(expected: Kinds, state: TrainState) -> None:
    """Check a state against the `kinds` of an earlier one.

    Raises:
        PurityError: with a table of the paths that changed.
    """
    kinds_found = kinds(state)
    if kinds_found == expected:
        return
    old, new = expected.by_path(), kinds_found.by_path()
    changes = [
        f"  {path}: {old.get(path, 'absent')} became {new.get(path, 'absent')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    if changes:
        shown = "\n".join(changes[:10] + ([f"  ... and {len(changes) - 10} more"] if len(changes) > 10 else []))
        raise PurityError(
            f"the step changed the structure of the state, which is fixed during a run:\n{shown}\n"
            "What a step is to remember must be there from the start, with the same shape and dtype: "
            "hf.init_state(..., extra=...)"
        )


def _in_words(kind: Any) -> str:
    if isinstance(kind, type):
        return kind.__name__
    dtype, shape = kind
    return tree.describe(torch.empty(shape, dtype=dtype, device="meta"))


def versions(state: TrainState) -> list[int]:
    """The version counters of all tensors of a state."""
    return [leaf._version for leaf in _tensors(tree.leaves(state))]


def check_unwritten(who: str, state: TrainState, before: list[int]) -> None:
    """Check that nobody has written to a state since its `versions` were taken.

    Raises:
        PurityError: names ``who`` and the leaf.
    """
    for leaf, version in zip(_tensors(tree.leaves(state)), before, strict=True):
        if leaf._version != version:
            raise _mutated(who, _path_of(leaf, state))


def _tensors(leaves: list[Any]) -> list[torch.Tensor]:
    """Those leaves that have a version counter; of sharded ones the local part, whose own it is."""
    found = [local(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in found if not leaf.is_inference()]


def _fingerprints(inputs: Any) -> dict[str, Any]:
    return {path: _fingerprint(leaf) for path, leaf in tree.items(inputs)}


def _fingerprint(leaf: Any) -> Any:
    """A value that changes when the leaf is written to, computed at memory speed where the leaf lives."""
    leaf = local(leaf)
    if isinstance(leaf, torch.Tensor):
        # Version counters miss writes through ``.data``, sums miss permutations: use both.
        return (-1 if leaf.is_inference() else leaf._version), _sum_of_bits(leaf), tuple(leaf.shape)
    if isinstance(leaf, np.ndarray | bool | int | float | complex | str):
        return tree.scalar_bytes(leaf)
    return None  # an object of the user's own: nobody can tell whether it changed


def _sum_of_bits(leaf: torch.Tensor) -> int | None:
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    try:
        flat = leaf.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        bits = torch.view_as_real(flat).contiguous().reshape(-1) if flat.is_complex() else flat
        return int(bits.view(words[bits.element_size()]).sum(dtype=torch.int64))
    except (RuntimeError, NotImplementedError):
        return None  # sparse, nested, quantised and meta tensors cannot be read so


def _path_of(leaf: torch.Tensor, state: TrainState) -> str:
    return next((path for path, other in tree.items(state) if local(other) is leaf), "params")


def _mutated(who: str, path: str) -> PurityError:
    return PurityError(
        f"the {who} wrote to its input at {path}: it must return new values and leave its inputs as they were. "
        "Replace in-place operations (names that end in _, out=, indexing on the left of =) or clone first"
    )


def _not_a_state(new: Any) -> TypeError:
    remedy = "did it forget to return?" if new is None else "return state.replace(params=..., ...)"
    return TypeError(f"the step must return a TrainState, got {type(new).__name__}: {remedy}")
