"""What the native optimisers share: torch's in-place kernels, on private copies or on memory that was given up.

The state is laid out as torch's own: for each parameter a dict of slots, such as
``opt_state.slots['head.weight']['exp_avg']``, and one update count for all of them.

``mode`` names the family of kernels and is part of the numeric contract, since their last bits
differ: ``"fused"`` (one kernel per update), ``"foreach"`` (one per operation), ``"loop"`` (one per operation
and tensor). It is never chosen silently: tensors that the fused kernels do not cover are refused by
``init``. In compiled regions, under ``torch.func`` transforms, and where autograd records an input, the
update is the algorithm's formula, which agrees with ``"loop"`` to rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .. import tree
from ..dtensors import any_sharded, around, local
from ..tracing import by_formula, is_traced
from ..types import Tree
from .base import Optimizer
from .formulated import formulated
from .layout import Group, Known, Layout, survey
from .rule import Rule
from .schedules.base import last_rate, rate_at
from .tensors import at, check_like, check_shards, leaves_like, placed, updatable_leaves

_SMALL = 1 << 20  # elements


class NativeState(NamedTuple):
    """The updates applied so far (int64, 0-d, on the CPU), and at each parameter's place a dict of slots."""

    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, of no use here
    slots: Tree


def native(rule: Rule) -> Optimizer:
    """The pure optimiser that applies ``rule``."""
    made = Native(rule)
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class Native:
    """The functions of a native optimiser."""

    rule: Rule
    known: Known = dataclasses.field(default_factory=Known, compare=False)

    def init(self, params: Tree) -> NativeState:
        """See `Optimizer`."""
        leaves, treespec = updatable_leaves(params, sharded=self.rule.elementwise)
        for path, leaf in tree.items(params):
            refusal = _unfused(self.rule, leaf) or self.rule.refusal(leaf)
            if refusal:
                raise ValueError(f"{at('params', path)} is {placed(leaf)}: {refusal}")
        slots = [self.rule.slots(leaf.detach()) for leaf in leaves]
        return NativeState(torch.zeros((), dtype=torch.int64, device="cpu"), tree.unflatten(treespec, slots))

    def update(
        self, grads: Tree, state: NativeState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, NativeState]:
        """See `Optimizer`."""
        return self.updated(self.rule, grads, state, params, donate=donate)

    def updated(
        self, rule: Rule, grads: Tree, state: NativeState, params: Tree, *, donate: bool
    ) -> tuple[Tree, NativeState]:
        """The update by ``rule``, which differs from this optimiser's own in the values of hyperparameters at most."""
        if is_traced():
            return _formulated(rule, grads, state, params, donate)
        seen = self.known.recall(params, state.slots, grads)
        if seen is None:
            if by_formula(tree.leaves((params, state.slots, grads))):
                return _formulated(rule, grads, state, params, donate)
            if any_sharded(tree.leaves(params)):
                return self._sharded(rule, grads, state, params, donate)
            seen = self.known.keep(_surveyed(rule, params, state, grads), params, state.slots, grads)
        # From here on nothing can be recorded by autograd: no tensor requires gradients, or recording is off.
        layout, size, count = seen.layout, len(seen.leaves), int(state.count)
        lr = rate_at(rule.lr, count)
        own = layout.own([*seen.leaves, *seen.memory], seen.grads, donate=donate)
        gradients = layout.fitted(seen.grads, own)
        for group in layout.groups:
            rule.apply(*group.parts(own, gradients), count=count, lr=lr)
        advanced = state.count.add_(1) if donate else state.count + 1
        return seen.treespec.unflatten(own[:size]), NativeState(advanced, seen.memory_spec.unflatten(own[size:]))

    def _sharded(
        self, rule: Rule, grads: Tree, state: NativeState, params: Tree, donate: bool
    ) -> tuple[Tree, NativeState]:
        """The same update of the parts that this process holds."""
        check_shards(grads, params)
        held, slots = (tree.map(local, part) for part in (params, state.slots))
        new, after = self.updated(rule, tree.map(local, grads), NativeState(state.count, slots), held, donate=donate)
        params = tree.map(around, new, params)
        return params, NativeState(after.count, tree.map(around, after.slots, state.slots))

    def count(self, state: NativeState) -> int | torch.Tensor:
        """See `Optimizer`."""
        return state.count if is_traced() else int(state.count)

    def monitor(self, state: NativeState) -> dict[str, Any]:
        """See `Optimizer`."""
        return monitored(self.rule.lr, state.count)

    def __repr__(self) -> str:
        return repr(self.rule)


def monitored(lr: Any, count: torch.Tensor) -> dict[str, Any]:
    """The rate that the last update used, or that the first one will use: a float, or where traced a tensor."""
    if type(lr) is float:
        return {"learning_rate": lr}
    if not is_traced():
        return {"learning_rate": float(last_rate(lr, int(count)))}
    return {"learning_rate": torch.as_tensor(last_rate(lr, count), dtype=torch.float64)}


def _formulated(rule: Rule, grads: Tree, state: NativeState, params: Tree, donate: bool) -> tuple[Tree, NativeState]:
    params, count, slots = formulated(rule, grads, state.count, state.slots, params, donate=donate)
    return params, NativeState(count, slots)


def _surveyed(rule: Rule, params: Tree, state: NativeState, grads: Tree) -> Layout:
    """The full check of an update's tensors."""
    leaves, treespec = tree.flatten(params)
    held, gradients = [*leaves, *tree.leaves(state.slots)], leaves_like(grads, params, treespec)
    paths = tree.paths(params)
    check_like("grads", gradients, leaves, lambda: paths)
    foreign = ValueError(f"this opt_state was not made by {rule!r} for these params: it has other slots")
    try:
        rows = treespec.flatten_up_to(state.slots)
    except ValueError:
        raise foreign from None
    names = [rule.names(leaf) for leaf in leaves]
    if any(not isinstance(row, dict) or tuple(sorted(row)) != own for row, own in zip(rows, names, strict=True)):
        raise foreign
    for leaf, row, path in zip(leaves, rows, paths, strict=True):
        # The meta device needs no memory, but its functions import sympy, and a process takes a second for that.
        like = leaf.detach() if leaf.numel() <= _SMALL else torch.empty_like(leaf, device="meta")
        for name, wanted in rule.slots(like).items():
            slot = row[name]
            kind = (slot.shape, slot.dtype, slot.device) if isinstance(slot, torch.Tensor) else None
            if kind != (wanted.shape, wanted.dtype, leaf.device):
                raise ValueError(
                    f"the slot {name!r} of {at('params', path)} is {placed(slot)}, not {tree.describe(wanted)} on "
                    f"{leaf.device}: this opt_state was made for other params"
                )
    places = _places(names)
    pairs = [(i, j) for j, own in enumerate(places) for i in own if held[i].shape == leaves[j].shape]
    return survey(held, gradients, pairs, _groups(leaves, names, places))


def _places(names: list[tuple[str, ...]]) -> list[range]:
    """Where the slots of each parameter are: behind all parameters, one after another, in the order of names."""
    places, first = [], len(names)
    for own in names:
        places.append(range(first, first + len(own)))
        first += len(own)
    return places


def _groups(leaves: list[torch.Tensor], names: list[tuple[str, ...]], places: list[range]) -> tuple[Group, ...]:
    """The parameters that a kernel takes together: of one dtype and device, with slots of the same names."""
    members: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        members.setdefault((leaf.dtype, leaf.device, names[i]), []).append(i)
    if len(members) == 1:
        n, width = len(leaves), len(names[0])
        return (Group(slice(0, n), tuple(slice(n + i, None, width) for i in range(width))),)
    return tuple(
        Group(tuple(indices), tuple(tuple(places[i][k] for i in indices) for k in range(len(own))))
        for (_, _, own), indices in members.items()
    )


def _unfused(rule: Rule, leaf: torch.Tensor) -> str:
    if getattr(rule, "mode", None) != "fused":
        return ""
    if leaf.device.type in _get_fused_kernels_supported_devices() and leaf.is_floating_point():
        return ""
    return "mode='fused' has no kernel for it, choose mode='foreach' or mode='loop'"
