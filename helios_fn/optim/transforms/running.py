"""Running sums of gradients: exponential averages, and the velocity of momentum."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from ... import accumulate, tree
from ...tracing import by_formula
from ...types import Tree
from ..base import Transform
from ..checks import flag, number
from ..tensors import updatable_leaves
from ..text import call


class RunningState(NamedTuple):
    """The updates so far (int64, 0-d, on the CPU), and the sum: a tree like the parameters.

    Half precisions are summed in float32, since they would lose most terms.
    """

    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, of no use here
    sum: Tree


def ema_of_gradients(decay: float, *, debias: bool = True) -> Transform:
    """Replace the gradients by their exponential moving average.

    ``average = decay * average + (1 - decay) * grads``, from 0. With ``debias`` the result is divided by
    ``1 - decay ** n`` at the n-th update, so that it is a weighted mean of the gradients; else the first
    updates are short.

    The debiasing is that of [Adam](https://arxiv.org/abs/1412.6980).

    Raises:
        ValueError: ``decay`` is not in [0, 1).
    """
    decay = number("decay", decay, low=0.0, below=1.0)
    arguments = {"decay": decay, "debias": flag("debias", debias)}
    made = _Running("ema_of_gradients", arguments, decay, gain=1.0 - decay, debias=debias)
    return Transform(made.init, made.update)


def trace(decay: float, *, nesterov: bool = False) -> Transform:
    """Replace the gradients by their velocity: ``velocity = decay * velocity + grads``, from 0.

    Before ``sgd(lr)`` this is momentum, undamped. With ``nesterov`` the result is ``grads + decay * velocity``, from
    [Sutskever et al.](https://proceedings.mlr.press/v28/sutskever13.html)

    Raises:
        ValueError: ``decay`` is not in [0, 1).
    """
    decay = number("decay", decay, low=0.0, below=1.0)
    arguments = {"decay": decay, "nesterov": flag("nesterov", nesterov)}
    made = _Running("trace", arguments, decay, nesterov=nesterov)
    return Transform(made.init, made.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Running:
    name: str
    arguments: dict[str, Any]
    decay: float
    gain: float = 1.0
    debias: bool = False
    nesterov: bool = False
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)
    flatten_sum: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> RunningState:
        leaves, treespec = updatable_leaves(params)
        count = torch.zeros((), dtype=torch.int64, device="cpu")
        return RunningState(count, tree.unflatten(treespec, accumulate.zeros(leaves)))

    def update(self, grads: Tree, state: RunningState, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, RunningState]:
        leaves, treespec = self.flatten(grads)
        before, _ = self.flatten_sum(state.sum)
        wide = [accumulate.widen(leaf) for leaf in leaves]
        plain = by_formula([*leaves, *before])
        after = _decayed_sum(before, wide, self.decay, self.gain, plain)
        found = after
        if self.nesterov:
            found = _decayed_sum(after, wide, self.decay, self.gain, plain)
        if self.debias:
            found = _divided(found, self._mass(state.count, plain), plain)
        found = [new.to(leaf.dtype) for new, leaf in zip(found, leaves, strict=True)]
        return tree.unflatten(treespec, found), RunningState(state.count + 1, tree.unflatten(treespec, after))

    def _mass(self, count: torch.Tensor, plain: bool) -> Any:
        """The sum of the weights that the gradients have in the average."""
        return 1.0 - self.decay ** (count.to(torch.float64) + 1 if plain else int(count) + 1)

    def __repr__(self) -> str:
        return call(self.name, self.arguments)


def _decayed_sum(
    sums: list[torch.Tensor], terms: list[torch.Tensor], decay: float, gain: float, plain: bool
) -> list[torch.Tensor]:
    if plain:
        return [torch.add(s * decay, term, alpha=gain) for s, term in zip(sums, terms, strict=True)]
    if not sums:
        return sums
    new = list(torch._foreach_mul(sums, decay))
    torch._foreach_add_(new, terms, alpha=gain)
    return new


def _divided(sums: list[torch.Tensor], mass: Any, plain: bool) -> list[torch.Tensor]:
    if plain:
        return [(leaf / mass.to(leaf.device)).to(leaf.dtype) for leaf in sums]
    return list(torch._foreach_div(sums, mass)) if sums else sums
