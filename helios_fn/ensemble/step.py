"""A step over K members at once: the members' own step, mapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch

from .. import tree
from ..errors import PurityError
from ..state import TrainState
from ..types import Step, Tree
from .explain import mapped
from .members import STACKED, Members, lowest_bad, members_of, path_in, size

Batches: TypeAlias = Literal["shared", "own"]
NonFinite: TypeAlias = Literal["raise", "freeze"]
Stop: TypeAlias = Callable[[TrainState], torch.Tensor]


def ensemble(
    step: Step, *, batches: Batches = "shared", stop: Stop | None = None, non_finite: NonFinite = "raise"
) -> EnsembleStep:
    """A step for states made by `stack`: one call advances every member by one iteration.

    ``step`` is mapped over the members by ``torch.func.vmap``, so one kernel does the work of K; compile it by
    ``hf.compile(ensemble(step))``. What becomes of a member depends on nothing but itself and its batch.

    A member equals the same run alone but for rounding, where torch sums K tensors in another order than one,
    and where the optimiser has other kernels for a run alone. On a CPU in float32, ten iterations of a multilayer
    perceptron by a formula are equal in all bits, very small layers aside; convolutions, normalisation layers and
    reported losses agree to 3e-7, and so do perceptrons under the fused kernels of AdamW.

    Metrics are logged for each member (``loss/0``, ``loss/1``, ...) and as their mean over the active members
    (``loss``).

    A member is active until ``stop`` or ``non_finite`` ends it. From then on all its tensors keep their bits and its
    metrics are NaN; the others are not affected. What it takes in memory and time it goes on to take.

    Args:
        step: from `make_step`, or written by hand: traceable by ``torch.func.vmap``, so without
            decisions by the values of tensors. Random draws come from `helios_fn.random` or from models made by
            ``hf.functional(..., draws="keyed")``.
        batches: ``"shared"``, all members see the same batch; or ``"own"``, every tensor of a batch has a leading
            dimension of K, as `helios_fn.data.Members` makes them.
        stop: ``stop(state) -> 0-d bool tensor``, asked of each member's state after its update (with its
            metrics, and counters as before the iteration); true ends the member. Mapped like ``step``. To end
            the run when all have stopped, hand ``should_stop=all_stopped`` to `run`.
        non_finite: ``"raise"``, the ensemble's ``first_bad`` tells of the first bad member, and the driver's policy
            applies to all together; or ``"freeze"``, a member whose loss or gradients are not finite is
            stopped as it was before, and the others go on.

    Raises:
        ValueError: ``batches`` or ``non_finite`` is unknown; in a step, a batch does not fit the members.
        TypeError: ``step`` is not a function; in a step, the state is not an ensemble.
        NotTraceable: in a step, the members' step cannot be mapped; the message tells why and what to do.
        PurityError: in a step, the members' step changed the structure of its state.
    """
    if not callable(step) or isinstance(step, TrainState):
        raise TypeError(f"step must be a function step(state, batch) -> state, got {tree.describe(step)}")
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be a function of a member's state, got {tree.describe(stop)}")
    for name, value, known in (("batches", batches, Batches), ("non_finite", non_finite, NonFinite)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, got {value!r}")
    return EnsembleStep(step, batches, stop, non_finite)


class EnsembleStep:
    """What `ensemble` returns: call it as ``step(state, batch)``."""

    def __init__(self, step: Step, batches: Batches, stop: Stop | None, non_finite: NonFinite) -> None:
        self._step, self._stop = step, stop
        self._own = batches == "own"
        self._freeze = non_finite == "freeze"

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """The next state of all members; ``state`` stays as it is."""
        members = members_of(state)
        if self._own and not torch.compiler.is_compiling():
            _check_own(batch, size(state))
        fields, first_bad, active, metrics = self._map(state, members, batch)
        *stacked, extra = fields
        return state.replace(
            **dict(zip(STACKED, stacked, strict=True)),
            extra=Members(members.keys, active, first_bad, extra),
            first_bad=state.first_bad if self._freeze else lowest_bad(first_bad),
            metrics=_by_member(metrics, members.active),
        )

    def __repr__(self) -> str:
        return f"ensemble({self._step!r})"

    def donating(self, state: TrainState, batch: Any) -> TrainState:
        """The same, since a mapped step could make no use of the memory of ``state``; `compile` sees to that."""
        return self(state, batch)

    def _map(self, state: TrainState, members: Members, batch: Any) -> tuple[Any, Any, Any, dict[str, torch.Tensor]]:
        """The members' fields, ``first_bad`` and ``active`` after the iteration, and their metrics."""
        fields = _fields_of(state, members.extra)
        before, items = tree.tensors(fields), tree.tensors(batch) if self._own else []
        # In a compiled region the Python scalars, which all members have in common, are 0-d tensors.
        common = [tensor.dim() == 0 for tensor in before]
        said: list[Any] = []  # what is no tensor cannot leave a mapped function otherwise

        def one(old: list[torch.Tensor], items: list[torch.Tensor], key: Any, first_bad: Any, active: Any) -> Any:
            *stacked, extra = tree.with_tensors(fields, old)
            lane = state.replace(**dict(zip(STACKED, stacked, strict=True)), extra=extra, key=key, first_bad=first_bad)
            new = self._advance(lane, tree.with_tensors(batch, items) if self._own else batch)
            keep, active_after = self._judged(new, active)
            found = _fields_of(new, new.extra)
            if not torch.compiler.is_compiling():
                _check_structure(fields, found)
            said.append((found, list(new.metrics)))
            after = _chosen(keep, tree.tensors(found), old, common)
            bad = torch.where(active, new.first_bad.to(active.device), first_bad)
            return after, list(new.metrics.values()), bad, active_after

        dims = ([None if is_common else 0 for is_common in common], 0, 0, 0, 0)
        arguments = (before, items, members.keys, members.first_bad, members.active)
        after, values, bad, active = mapped(one, in_dims=dims)(*arguments)
        found, names = said[-1]
        # A value that no member had a part in comes back as one element seen K times.
        pairs = zip(after, common, strict=True)
        after = [tensor[0] if is_common else tensor.contiguous() for tensor, is_common in pairs]
        return tree.with_tensors(found, after), bad, active, dict(zip(names, values, strict=True))

    def _advance(self, state: TrainState, batch: Any) -> TrainState:
        """One member's iteration, or what was wrong with it."""
        new = self._step(state, batch)
        if not isinstance(new, TrainState):
            raise TypeError(f"the step must return a TrainState, got {tree.describe(new)}")
        return new

    def _judged(self, new: TrainState, active: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether a member takes the iteration over, and whether it is active after it."""
        keep = active & (new.first_bad < 0).to(active.device) if self._freeze else active
        if self._stop is None:
            return keep, keep
        answer = self._stop(new)
        if not isinstance(answer, torch.Tensor) or answer.dtype is not torch.bool or answer.dim() != 0:
            raise TypeError(f"stop must return a 0-d bool tensor for each member, got {tree.describe(answer)}")
        return keep, keep & ~answer.to(active.device)


def _fields_of(state: TrainState, extra: Tree) -> tuple[Tree, ...]:
    return (*(getattr(state, name) for name in STACKED), extra)


def _chosen(
    keep: torch.Tensor, new: list[torch.Tensor], old: list[torch.Tensor], common: list[bool]
) -> list[torch.Tensor]:
    """The tensors of ``new`` where the member takes them over, else those of ``old``."""
    return [
        left if left is right or is_common else torch.where(keep.to(left.device), left, right)
        for left, right, is_common in zip(new, old, common, strict=True)
    ]


def _by_member(metrics: dict[str, torch.Tensor], active: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each metric the mean over the active members, and the value of each, NaN where it is not active."""
    found = {}
    for name, values in metrics.items():
        here = active.to(values.device)
        told = torch.where(here, values, torch.nan)
        found[name] = torch.where(here, values, 0).sum() / here.sum()
        found.update({f"{name}/{index}": value for index, value in enumerate(told.unbind())})
    return found


def _check_own(batch: Any, count: int) -> None:
    for path, leaf in tree.items(batch):
        if isinstance(leaf, torch.Tensor) and (leaf.dim() == 0 or leaf.shape[0] != count):
            raise ValueError(
                f"{path_in('batch', path)} is {tree.describe(leaf)}, but with batches='own' every tensor of a batch "
                f"has a leading dimension of {count} members: make the batches by hf.data.Members, or let the members "
                "share them, batches='shared'"
            )


def _check_structure(old: tuple[Tree, ...], new: tuple[Tree, ...]) -> None:
    for name, before, after in zip((*STACKED, "extra"), old, new, strict=True):
        if before is not after and tree.structure(before) != tree.structure(after):
            changed = set(tree.paths(before)) ^ set(tree.paths(after))
            where = path_in(name, min(changed)) if changed else name
            raise PurityError(f"the step changed the structure of the state, which is fixed during a run, at {where}")
