"""What an optimiser is: a pair of pure functions, and how gradient transforms are put before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch

from ..types import Tree
from .text import brief, stable


class Transform(NamedTuple):
    """A gradient transform, such as clipping.

    ``init(params) -> state`` makes its memory, an empty container if it has none.
    ``update(grads, state, params, *, weight=1.0) -> (grads, state)`` gives the new gradients, a tree like
    ``grads``. Both are pure: they write to no input, and the structure, shapes and dtypes of the state
    never change.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]

    def __repr__(self) -> str:
        return _description(self)


class Optimizer(NamedTuple):
    """An optimiser as pure functions over trees.

    Attributes:
        init: ``init(params) -> opt_state``. All memory exists from here on: structure, shapes and
            dtypes never change.
        update: ``update(grads, opt_state, params, *, weight=1.0, donate=False) -> (params, opt_state)``.
            Inputs are not written to, and equal inputs give equal bits. ``grads`` is a tree like ``params``;
            ``weight`` is the total weight (samples or tokens) that ``grads`` is a mean over, of which
            `every` makes use. With ``donate=True`` the caller gives up ``opt_state`` and ``params``: the same
            bits may be written into their memory, after all that is checked. ``grads`` is never written to.
        count: ``count(opt_state) -> int``, the updates applied so far; schedules are functions of it.
        monitor: ``monitor(opt_state) -> dict[str, float]``, what is worth logging: the
            ``learning_rate`` that the last update used, or that the first one will use.

    In a compiled region, under a ``torch.func`` transform, and where autograd records an input of it,
    ``update`` is made of out-of-place tensor operations alone: it can be compiled, mapped and differentiated, and
    agrees with the usual one to rounding. There ``count`` is a 0-d int64 tensor; in the first two cases
    ``monitor`` gives 0-d float64 tensors.

    ``repr`` tells how the optimiser was made, in the same words in every process.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., tuple[Tree, Tree]]
    count: Callable[[Tree], Any]
    monitor: Callable[[Tree], dict[str, Any]]

    def __repr__(self) -> str:
        return _description(self)


@overload
def chain(*parts: Transform) -> Transform: ...
@overload
def chain(*parts: *tuple[*tuple[Transform, ...], Optimizer]) -> Optimizer: ...
def chain(*parts: Any) -> Any:  # type: ignore[misc] # mypy does not match *Any with a starred tuple
    """Apply gradient transforms from left to right, then the optimiser that stands last.

    Without an optimiser the chain is a transform itself. The state is the tuple of the parts' states.

        optimizer = chain(clip_by_global_norm(1.0), adamw(3e-4))

    Raises:
        TypeError: a part is neither a `Transform` nor an `Optimizer`.
        ValueError: there are no parts, or an optimiser stands anywhere but last.

    Example:
        >>> optimizer = hf.optim.chain(hf.optim.clip_by_value(1.0), hf.optim.sgd(0.5))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> grads = {"w": torch.tensor([4.0, -4.0])}
        >>> params, opt_state = optimizer.update(grads, optimizer.init(params), params)
        >>> params["w"].tolist()
        [0.5, 2.5]
    """
    if not parts:
        raise ValueError("chain() needs at least one transform or optimiser")
    for position, part in enumerate(parts):
        if not isinstance(part, Transform | Optimizer):
            raise TypeError(f"part {position} of chain() is {brief(part)}, not a Transform or an Optimizer{hint(part)}")
        if isinstance(part, Optimizer) and position != len(parts) - 1:
            raise ValueError(
                f"part {position} of chain() is the optimiser {part!r}, but {len(parts) - 1 - position} part(s) follow "
                "it: a chain has one optimiser, and it stands last"
            )
    made = _Chain(parts)
    if isinstance(parts[-1], Optimizer):
        return Optimizer(made.init, made.update, made.count, made.monitor)
    return Transform(made.init, made.transform)


@dataclasses.dataclass(frozen=True, slots=True)
class _Chain:
    parts: tuple[Any, ...]

    def init(self, params: Tree) -> Tree:
        return tuple(part.init(params) for part in self.parts)

    def transform(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        states = []
        for part, memory in zip(self.parts, state, strict=True):
            grads, memory = part.update(grads, memory, params, weight=weight)
            states.append(memory)
        return grads, tuple(states)

    def update(
        self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, Tree]:
        before, optimizer = _Chain(self.parts[:-1]), self.parts[-1]
        grads, states = before.transform(grads, state[:-1], params, weight=weight)
        # What an optimiser from elsewhere does not know is not asked of it.
        given = {"weight": weight, "donate": True} if donate else {"weight": weight}
        params, memory = optimizer.update(grads, state[-1], params, **given)
        return params, (*states, memory)

    def count(self, state: Tree) -> Any:
        return self.parts[-1].count(state[-1])

    def monitor(self, state: Tree) -> dict[str, Any]:
        return dict(self.parts[-1].monitor(state[-1]))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.parts))})"


def _description(part: Transform | Optimizer) -> str:
    owner = getattr(part.init, "__self__", None)
    return f"{type(part).__name__}(init={stable(part.init)})" if owner is None else stable(owner)


def hint(part: Any) -> str:
    """What to write instead of something that is no part of a chain, as the end of a message."""
    if isinstance(part, torch.optim.Optimizer):
        return f": write from_torch(torch.optim.{type(part).__name__}, ...)"
    return f": call it, as in {part.__name__}(...)" if callable(part) and hasattr(part, "__name__") else ""
