"""Any ``torch.optim`` class as a pure optimiser.

Each update builds a fresh torch optimiser on private copies, hands it the slots that the state
holds, lets it take one real step, and collects the slots again. Nothing outlives the call, so there
is nothing to leak between calls or threads. Before its first update an optimiser is given no
slots: it makes them itself, as it would in an imperative loop, and the first update is torch's own.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import torch

from .. import tree
from ..errors import NotTraceable
from ..tracing import by_formula, is_traced
from ..types import Tree
from .base import Optimizer
from .imperative import Imperative, Kind, Memory
from .layout import Known, Layout, survey
from .schedules.base import last_rate, rate_at, refuse_scheduler
from .tensors import at, check_like, clone, leaves_like, updatable_leaves
from .text import brief, call


class AdaptedState(NamedTuple):
    """The memory of an adapted class.

    ``count`` is the number of updates applied so far (int64, 0-d, on the CPU); ``slots`` has at each
    parameter's place the dict that torch keeps for it, ``opt_state.slots['head.weight']['exp_avg']``;
    ``settings`` are the entries of torch's parameter group that the class itself changes, usually none.
    While ``count`` is 0 the slots are placeholders of the right structure that nobody reads.
    """

    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, of no use here
    slots: Tree
    settings: dict[str, Any]


def from_torch(cls: type[torch.optim.Optimizer], /, **hyper: Any) -> Optimizer:
    """``cls(params, **hyper)`` as a pure optimiser, bit for bit.

        optimizer = from_torch(torch.optim.NAdam, lr=warmup_cosine(2e-3, 100, 1000), betas=(0.9, 0.99))

    ``lr`` may also be a schedule, a function of the update count. All else is handed to the class as it
    is. Where `adamw`, `adam` or `sgd` will do, they take a fraction of the time.

    ``init`` learns the structure of the slots from two steps on throw-away copies, and takes the second
    one twice: by one torch optimiser that stays, and by a new one with the slots handed over, as
    ``update`` does it. If the bits differ, the class keeps memory where it cannot be found (in attributes,
    or in a random generator), and is refused.

    Raises:
        TypeError: ``cls`` is not an optimiser class or does not take ``hyper``; its ``step`` needs a closure
            (``LBFGS``) or sparse gradients (``SparseAdam``); in ``init``, it keeps hidden memory.
        ValueError: ``differentiable=True``; in ``init``, the class refuses a parameter (named in the message).
    """
    _check_class(cls, hyper)
    made = _Adapted(cls, dict(hyper))
    return Optimizer(made.init, made.update, made.count, made.monitor)


@dataclasses.dataclass(frozen=True, slots=True)
class _Adapted:
    cls: type[torch.optim.Optimizer]
    hyper: dict[str, Any]
    known: Known = dataclasses.field(default_factory=Known, compare=False)
    kind: Kind = dataclasses.field(default_factory=Kind, compare=False)

    @torch.no_grad()
    def init(self, params: Tree) -> AdaptedState:
        leaves, treespec = updatable_leaves(params)
        blank = self._probed(params, leaves).blank()
        count = torch.zeros((), dtype=torch.int64, device="cpu")
        return AdaptedState(count, tree.unflatten(treespec, blank.slots), blank.settings)

    def update(
        self, grads: Tree, state: AdaptedState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, AdaptedState]:
        seen = None if is_traced() else self.known.recall(params, (), grads)
        if seen is None:
            seen = self.known.keep(self._surveyed(grads, params), params, (), grads)
        leaves, treespec, layout = seen.leaves, seen.treespec, seen.layout
        if not leaves:
            return params, state._replace(count=state.count + 1)
        slots: list[Any] = treespec.flatten_up_to(state.slots)
        held, count = Memory(slots, state.settings), int(state.count)
        with torch.no_grad():
            own = layout.own(leaves, seen.grads, donate=donate)
            fitted = layout.fitted(seen.grads, own)
            live = Imperative(self.cls, self._arguments(count), own)
            if count > 0:
                live.install(held if donate else held.copy())
            live.step(fitted if self._spares_gradients() else clone(fitted))
            memory = live.memory(held.settings)
            if not (self.kind.matches(held) and self.kind.matches(memory)):
                _check_structure(self.cls, held, memory, count)
                self.kind.learn(memory)
            advanced = AdaptedState(state.count + 1, tree.unflatten(treespec, memory.slots), memory.settings)
            return tree.unflatten(treespec, live.release()), advanced

    def _surveyed(self, grads: Tree, params: Tree) -> Layout:
        """The full check of an update's tensors."""
        leaves, treespec = tree.flatten(params)
        gradients = leaves_like(grads, params, treespec)
        if by_formula((*leaves, *gradients)):
            raise NotTraceable(
                f"{self.cls.__name__} of torch.optim works in place and cannot be compiled, mapped or "
                "differentiated: take one of the optimisers of hf.optim, or call it outside (under torch.no_grad())"
            )
        check_like("grads", gradients, leaves, lambda: tree.paths(params))
        return survey(leaves, gradients, (), ())

    def count(self, state: AdaptedState) -> int:
        return int(state.count)

    def monitor(self, state: AdaptedState) -> dict[str, float]:
        count = int(state.count)
        if count > 0 and "lr" in state.settings:
            return {"learning_rate": float(state.settings["lr"])}
        lr = self.hyper.get("lr", _default_rate(self.cls))  # type: ignore[arg-type] # classes are hashable
        if callable(lr):
            return {"learning_rate": last_rate(lr, count)}
        return {"learning_rate": float(lr)} if isinstance(lr, int | float | torch.Tensor) else {}

    def __repr__(self) -> str:
        return call("from_torch", {"cls": self.cls, **self.hyper})

    def _spares_gradients(self) -> bool:
        """Whether steps are known to leave gradients alone, and need no copies of them.

        Only of torch's own classes, which do the same in all steps, a few of them show it.
        """
        if self.kind.spares_gradients is None:
            self.kind.spares_gradients = self.cls.__module__.startswith("torch.optim.") and self._tried_on_gradients()
        return self.kind.spares_gradients

    def _tried_on_gradients(self) -> bool:
        grads = [torch.ones(2, 2), torch.ones(2, 2)]
        try:
            live = Imperative(self.cls, self._arguments(0), [torch.zeros(2, 2), torch.zeros(2, 2)])
            for _ in range(3):
                live.step(grads)
        except Exception:  # whatever it wants, it does not take this
            return False
        kept = {leaf.data_ptr() for leaf in tree.leaves(live.memory({}).contents()) if isinstance(leaf, torch.Tensor)}
        return all(grad._version == 0 and grad.data_ptr() not in kept for grad in grads)

    def _arguments(self, count: int) -> dict[str, Any]:
        """The keyword arguments of the class for the update that follows ``count`` updates."""
        lr = self.hyper.get("lr")
        return {**self.hyper, "lr": rate_at(lr, count)} if callable(lr) else self.hyper

    def _probed(self, params: Tree, leaves: list[torch.Tensor]) -> Memory:
        """What the class remembers after a step, or an error that names the parameter at fault."""
        if not leaves:
            return Memory([], {})
        try:
            memory = self._learned(leaves)
        except Exception as error:
            culprits = [path for path, leaf in tree.items(params) if not self._takes(leaf)]
            if 0 < len(culprits) < len(leaves):
                raise ValueError(f"{self.cls.__name__} refuses {at('params', culprits[0])}: {error}") from error
            raise
        if callable(self.hyper.get("lr")) and "lr" in memory.settings:
            raise TypeError(f"{self.cls.__name__} sets its own learning rate, so lr cannot be a schedule")
        _check_leaves(self.cls, memory, tree.paths(params))
        return memory

    def _takes(self, leaf: torch.Tensor) -> bool:
        try:
            self._learned([leaf])
        except Exception:
            return False
        return True

    def _learned(self, leaves: list[torch.Tensor]) -> Memory:
        arguments = self._arguments(0)
        stays = Imperative(self.cls, arguments, clone(leaves))
        stays.step([torch.ones_like(leaf) for leaf in leaves])
        first, between = stays.memory({}).copy(), clone(stays.leaves)
        stays.step([torch.full_like(leaf, -0.5) for leaf in leaves])
        renewed = Imperative(self.cls, arguments, between)
        renewed.install(first.copy())
        renewed.step([torch.full_like(leaf, -0.5) for leaf in leaves])
        wanted, found = stays.memory(first.settings), renewed.memory(first.settings)
        _check_structure(self.cls, first, wanted, 1)
        if not tree.equal([stays.leaves, wanted.contents()], [renewed.leaves, found.contents()]):
            raise TypeError(
                f"{self.cls.__name__} cannot be made pure: its second step depends on more than parameters, "
                "gradients, slots and settings (an attribute of its own, or a random generator)"
            )
        return first


def _check_class(cls: Any, hyper: dict[str, Any]) -> None:
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        name = type(cls).__name__
        hint = (
            f": hand over the class {name} and its arguments, not an optimiser of your params"
            if isinstance(cls, torch.optim.Optimizer)
            else ""
        )
        raise TypeError(f"from_torch needs a subclass of torch.optim.Optimizer, got {brief(cls)}{hint}")
    refuse_scheduler(hyper.get("lr"))
    if issubclass(cls, torch.optim.SparseAdam):
        raise TypeError(f"{cls.__name__} works on sparse gradients, and gradients here are dense: use adam")
    needed = [p.name for p in list(inspect.signature(cls.step).parameters.values())[1:] if p.default is p.empty]
    if needed:
        raise TypeError(
            f"{cls.__name__}.step needs {', '.join(needed)}: it evaluates the loss by itself, several times per "
            "step, and is no function of one gradient"
        )
    try:
        inspect.signature(cls).bind((), **hyper)
    except TypeError as error:
        raise TypeError(f"{cls.__name__} does not take these arguments: {error}") from None
    if hyper.get("differentiable"):
        raise ValueError("differentiable=True is refused: updates here are made in place on private copies")


def _check_structure(cls: type, before: Memory, after: Memory, count: int) -> None:
    held, held_spec = tree.flatten(before.contents())
    found, found_spec = tree.flatten(after.contents())
    if held_spec != found_spec:
        raise TypeError(
            f"{cls.__name__} changed the structure of its memory in update {count + 1}: "
            f"from {tree.paths(before.contents())} to {tree.paths(after.contents())}"
        )
    for i, (old, new) in enumerate(zip(held, found, strict=True)):
        same = type(old) is type(new) and (
            not isinstance(old, torch.Tensor) or (old.shape == new.shape and old.dtype is new.dtype)
        )
        if not same:
            raise TypeError(
                f"{cls.__name__} changed {tree.paths(before.contents())[i]} from {tree.describe(old)} "
                f"to {tree.describe(new)} in update {count + 1}"
            )


def _check_leaves(cls: type, memory: Memory, paths: list[str]) -> None:
    for path, slots in zip([*paths, "settings"], [*memory.slots, memory.settings], strict=True):
        for name, leaf in tree.items(slots):
            if not isinstance(leaf, torch.Tensor | bool | int | float):
                raise TypeError(f"{cls.__name__} keeps {tree.describe(leaf)} in {path}{name}, which cannot be saved")


@functools.cache
def _default_rate(cls: type) -> Any:
    parameter = inspect.signature(cls).parameters.get("lr")
    return None if parameter is None or parameter.default is parameter.empty else parameter.default
