"""What the native optimisers share: torch's in-place kernels, made pure by private copies.

The state is laid out as torch's own: for each parameter a dict of slots, such as
``opt_state.slots['head.weight']['exp_avg']``, and one update count for all of them.

``mode`` names the family of kernels and is part of the numeric contract, since their last bits
differ: ``"fused"`` (one kernel per update), ``"foreach"`` (one per operation), ``"loop"`` (one per operation
and tensor). It is never chosen silently: tensors that the fused kernels do not cover are refused by
``init``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .. import tree
from ..types import Tree
from .base import Optimizer
from .schedules.base import Rate, last_rate, rate_at
from .tensors import Template, at, clone, leaves_like, updatable_leaves

Mode: TypeAlias = Literal["fused", "foreach", "loop"]


class NativeState(NamedTuple):
    """The updates applied so far (int64, 0-d, on the CPU), and at each parameter's place a dict of slots."""

    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, of no use here
    slots: Tree


class Rule(Protocol):
    """One algorithm: its hyperparameters, the names of its slots, and one update in place."""

    @property
    def lr(self) -> Rate:
        """The learning rate or its schedule."""

    @property
    def mode(self) -> Mode:
        """The family of kernels."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, sorted."""

    def apply(
        self,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        slots: list[list[torch.Tensor]],
        *,
        count: int,
        lr: float,
    ) -> None:
        """Overwrite ``params`` and the tensors of ``slots`` (one list per name), but not ``grads``.

        All are private, of one dtype and device, and laid out in memory alike. ``count`` is the number
        of updates before this one.
        """


def native(rule: Rule) -> Optimizer:
    """The pure optimiser that applies ``rule``."""
    made = _Native(rule)
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Native:
    rule: Rule
    flatten_params: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)
    flatten_slots: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> NativeState:
        leaves, treespec = updatable_leaves(params)
        if self.rule.mode == "fused":
            _check_fused(params)
        slots = [{name: torch.zeros_like(leaf) for name in self.rule.slots} for leaf in leaves]
        return NativeState(torch.zeros((), dtype=torch.int64, device="cpu"), tree.unflatten(treespec, slots))

    @torch.no_grad()
    def update(self, grads: Tree, state: NativeState, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, NativeState]:
        leaves, treespec = self.flatten_params(params)
        memory, memory_spec = self.flatten_slots(state.slots)
        names, count = self.rule.slots, int(state.count)
        if len(memory) != len(names) * len(leaves):
            raise ValueError(f"this opt_state was not made by {self!r} for these params: it has other slots")
        private = clone([*leaves, *memory])
        new, rows = private[: len(leaves)], private[len(leaves) :]
        template = Template(new)
        # The slots come parameter by parameter, in the sorted order of their names.
        slots = [template.fit(rows[i :: len(names)], f"the slot {name!r}") for i, name in enumerate(names)]
        self._apply(template, new, leaves_like(grads, params, treespec, template), slots, count)
        rows = [slot for row in zip(*slots, strict=True) for slot in row]
        return treespec.unflatten(new), NativeState(state.count + 1, memory_spec.unflatten(rows))

    def _apply(
        self,
        template: Template,
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        slots: list[list[torch.Tensor]],
        count: int,
    ) -> None:
        lr = rate_at(self.rule.lr, count)
        for indices in template.groups():
            self.rule.apply(
                [params[i] for i in indices],
                [grads[i] for i in indices],
                [[slot[i] for i in indices] for slot in slots],
                count=count,
                lr=lr,
            )

    def count(self, state: NativeState) -> int:
        return int(state.count)

    def monitor(self, state: NativeState) -> dict[str, float]:
        return {"learning_rate": last_rate(self.rule.lr, int(state.count))}

    def __repr__(self) -> str:
        return repr(self.rule)


def _check_fused(params: Tree) -> None:
    devices = _get_fused_kernels_supported_devices()
    for path, leaf in tree.items(params):
        if leaf.device.type not in devices or not leaf.is_floating_point():
            raise ValueError(
                f"mode='fused' has no kernel for {at('params', path)}, {tree.describe(leaf)} on {leaf.device}: "
                "choose mode='foreach' or mode='loop'"
            )
