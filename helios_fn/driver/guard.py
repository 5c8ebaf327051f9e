"""The purity guard: notices a step that writes to its input, draws from a global generator or changes structure.

The first steps of each process are checked in full. Later ones are sampled by the tensors' version
counters, a few leaves per step in rotation, so that the check costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import random, tree
from ..errors import PurityError
from ..state import TrainState
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
        self._turn = 0
        self._watch_all = False

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """The step's result.

        Raises:
            PurityError: the call was not pure; names the leaf or the generator, and the remedy.
            TypeError: the step returned something else than a `TrainState`.
        """
        if self._remaining > 0:
            self._remaining -= 1
            return self._call_checked(state, batch)
        watched = _tensors(tree.leaves(state)) if self._watch_all else self._sample(state)
        self._watch_all = False
        versions = [leaf._version for leaf in watched]
        new = self._step(state, batch)
        for leaf, version in zip(watched, versions, strict=True):
            if leaf._version != version:
                raise _mutated(_path_of(leaf, state))
        if type(new) is not TrainState:
            raise _not_a_state(new)
        return new

    def watch_next(self) -> None:
        """Look at the version counters of all leaves in the next call: its input is a state that was saved."""
        self._watch_all = True

    def _sample(self, state: TrainState) -> list[torch.Tensor]:
        # The parameters and buffers are what careless steps write to; they are cheap to list when dicts.
        params = state.params if type(state.params) is dict else None
        if not params:
            return []
        names = list(params)
        picked = [params[names[(self._turn + i) % len(names)]] for i in range(min(_LEAVES_PER_STEP, len(names)))]
        self._turn = (self._turn + _LEAVES_PER_STEP) % len(names)
        return _tensors(picked)

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
        for path, value in _fingerprints(inputs).items():
            if before.get(path) != value:
                raise _mutated(path.removeprefix("['state']").removeprefix(".") or path)
        check_same_structure(state, new)
        return new


def _tensors(leaves: list[Any]) -> list[torch.Tensor]:
    """Those leaves that have a version counter."""
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not leaf.is_inference()]


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
    old_kinds, new_kinds = _kinds(state), _kinds(new)
    changes = [
        f"  {path}: {old_kinds.get(path, 'absent')} became {new_kinds.get(path, 'absent')}"
        for path in sorted(old_kinds.keys() | new_kinds.keys())
        if old_kinds.get(path) != new_kinds.get(path)
    ]
    if changes:
        shown = "\n".join(changes[:10] + ([f"  ... and {len(changes) - 10} more"] if len(changes) > 10 else []))
        raise PurityError(f"the step changed the structure of the state, which is fixed during a run:\n{shown}")


def _kinds(state: TrainState) -> dict[str, str]:
    fixed = state.replace(metrics={})
    return {
        path: tree.describe(leaf) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
        for path, leaf in tree.items(fixed)
    }


def _fingerprints(inputs: Any) -> dict[str, Any]:
    return {path: _fingerprint(leaf) for path, leaf in tree.items(inputs)}


def _fingerprint(leaf: Any) -> Any:
    """A value that changes when the leaf is written to, computed at memory speed where the leaf lives."""
    if not isinstance(leaf, torch.Tensor):
        return tree.scalar_bytes(leaf) if isinstance(leaf, bool | int | float | complex | str) else None
    version = -1 if leaf.is_inference() else leaf._version
    if leaf.layout is not torch.strided or not leaf.numel():
        return version, tuple(leaf.shape)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(leaf.element_size())
    flat = leaf.detach().contiguous().reshape(-1)
    bits = torch.view_as_real(flat).view(torch.int32) if flat.is_complex() else flat.view(words or torch.uint8)
    # Version counters miss writes through functional_call on BatchNorm, sums miss permutations: use both.
    return version, int(bits.sum(dtype=torch.int64)), tuple(leaf.shape)


def _path_of(leaf: torch.Tensor, state: TrainState) -> str:
    return next((path for path, other in tree.items(state) if other is leaf), "params")


def _mutated(path: str) -> PurityError:
    return PurityError(
        f"the step wrote to its input at {path}: a step returns new tensors and leaves its inputs as they were. "
        "Replace in-place operations (names that end in _, out=, indexing on the left of =) or clone first"
    )


def _not_a_state(new: Any) -> TypeError:
    remedy = "did it forget to return?" if new is None else "return state.replace(params=..., ...)"
    return TypeError(f"the step must return a TrainState, got {type(new).__name__}: {remedy}")
