"""Hyperparameters in the state, where they can be changed, mapped over and differentiated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import tree
from ..tracing import by_formula, is_traced
from ..types import Tree
from .base import Optimizer
from .formulated import formulated
from .native import Native, NativeState, monitored
from .rule import Rule
from .schedules.base import rate_at
from .text import brief, call

SCALE = "lr_scale"


class TunableState(NamedTuple):
    """The hyperparameters (float64, 0-d, on the CPU), and the state of the optimiser that they are of."""

    hyper: dict[str, Any]
    inner: NativeState


def tunable(factory: Callable[..., Optimizer], /, **hyper: Any) -> Optimizer:
    """``factory(**hyper)`` with those of the given hyperparameters that are floats (or tuples of them) in its state.

        optimizer = tunable(adamw, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
        opt_state = optimizer.init(params)
        opt_state.hyper["lr"]  # a float64 tensor without dimensions
        faster = opt_state._replace(hyper={**opt_state.hyper, "lr": torch.tensor(2e-3, dtype=torch.float64)})

    As leaves of the state they are saved in checkpoints, may differ between the members of an ensemble, can be
    replaced during a run, and have gradients where an update is differentiated. An update has the bits of
    ``factory`` called with their present values, which are checked by it at every change. What is not given, and all
    bools, integers and strings, are fixed.

    A schedule for ``lr`` is fixed as well; in its place the state has ``hyper["lr_scale"]``, by which its values are
    multiplied, 1 at first.

    Args:
        factory: one of the native optimisers, `adamw`, `adam`, `sgd`, `rmsprop`, `lion`, `adafactor`, `muon`.
        hyper: its arguments, all by name.

    Raises:
        TypeError: ``factory`` makes no native optimiser, or does not take ``hyper``.
        ValueError: a hyperparameter is out of range, or none of them is a float; in ``update``, one was changed
            to a value out of range, or to 0 where the algorithm would then have no memory (momentum).

    Example:
        >>> optimizer = hf.optim.tunable(hf.optim.sgd, lr=0.5)
        >>> optimizer.init({"w": torch.zeros(1)}).hyper
        {'lr': tensor(0.5000, dtype=torch.float64)}
    """
    made = factory(**hyper) if callable(factory) and not isinstance(factory, type) else None
    native = getattr(getattr(made, "update", None), "__self__", None)
    if not isinstance(native, Native):
        raise TypeError(
            f"tunable() needs a native optimiser such as hf.optim.adamw and its arguments, got {brief(factory)}"
        )
    schedule = native.rule.lr if callable(native.rule.lr) else None
    leaves = {name: getattr(native.rule, name) for name in hyper if _is_float(getattr(native.rule, name))}
    if schedule is not None:
        leaves[SCALE] = 1.0
    if leaves.get("momentum") == 0:
        raise ValueError("momentum=0 has no memory, and cannot be changed to more in the state: leave it out")
    if not leaves:
        raise ValueError(
            f"tunable({native.rule.name}) was given no hyperparameter that is a float: name those that are to be in "
            "the state, as in tunable(adamw, lr=1e-3, weight_decay=0.01)"
        )
    tuned = _Tunable(factory, dict(hyper), leaves, native)
    return Optimizer(tuned.init, tuned.update, tuned.count, tuned.monitor)


@dataclasses.dataclass(frozen=True)
class _Tunable:
    factory: Callable[..., Optimizer]
    given: dict[str, Any]
    leaves: dict[str, Any]
    native: Native

    def __post_init__(self) -> None:
        # Called with the same few values again and again, and each call checks them.
        object.__setattr__(self, "_checked", functools.lru_cache(maxsize=64)(self._made))

    def init(self, params: Tree) -> TunableState:
        hyper = tree.map(lambda value: torch.tensor(value, dtype=torch.float64, device="cpu"), self.leaves)
        return TunableState(hyper, self.native.init(params))

    def update(
        self, grads: Tree, state: TunableState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, TunableState]:
        if by_formula(tree.leaves(state.hyper)):
            values = dict(state.hyper)
            scale = values.pop(SCALE, None)
            rule = dataclasses.replace(self.native.rule, **values)
            params, count, slots = formulated(rule, grads, *state.inner, params, donate=donate, scale=scale)
            return params, TunableState(state.hyper, NativeState(count, slots))
        params, inner = self.native.updated(self._present(state.hyper), grads, state.inner, params, donate=donate)
        return params, TunableState(state.hyper, inner)

    def count(self, state: TunableState) -> Any:
        return self.native.count(state.inner)

    def monitor(self, state: TunableState) -> dict[str, Any]:
        lr, scale = self.native.rule.lr, state.hyper.get(SCALE)
        if scale is not None:
            lr = Scaled(lr, scale if is_traced() else scale.item())
        elif "lr" in state.hyper:
            lr = state.hyper["lr"] if is_traced() else state.hyper["lr"].item()
        return monitored(lr, state.inner.count)

    def _present(self, hyper: dict[str, Any]) -> Rule:
        """The rule with the present values."""
        values = tuple(
            tuple(leaf.item() for leaf in value) if isinstance(value, tuple) else value.item()
            for value in (hyper[name] for name in self.leaves)
        )
        return self._checked(values)  # type: ignore[attr-defined]

    def _made(self, values: tuple[Any, ...]) -> Rule:
        changed = dict(zip(self.leaves, values, strict=True))
        scale = changed.pop(SCALE, None)
        made = self.factory(**{**self.given, **changed})
        rule: Rule = made.update.__self__.rule  # type: ignore[attr-defined]
        probe = torch.empty((1, 1), device="meta")
        if rule.names(probe) != self.native.rule.names(probe):
            raise ValueError(
                f"{rule!r} has other slots than {self.native.rule!r}: a momentum cannot become 0 in the state"
            )
        return rule if scale is None else dataclasses.replace(rule, lr=Scaled(rule.lr, scale))

    def __repr__(self) -> str:
        return call("tunable", {"factory": self.native.rule.name, **self.given})


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A schedule times a number or a 0-d tensor."""

    schedule: Any
    scale: Any

    def __call__(self, count: Any) -> Any:
        """The rate of the update that follows ``count`` updates."""
        return self.scale * rate_at(self.schedule, count)


def _is_float(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return len(parts) > 0 and all(isinstance(part, float) for part in parts)
