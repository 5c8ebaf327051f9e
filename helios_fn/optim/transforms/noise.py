"""Gaussian noise on the gradients, as a function of a key and the count."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from ... import random, tree
from ...tracing import is_traced
from ...types import Key, Tree
from ..base import Transform
from ..checks import choice, number
from ..tensors import at, updatable_leaves
from ..text import call

Draws: TypeAlias = Literal["portable", "native"]


class NoiseState(NamedTuple):
    """The updates so far (int64, 0-d, on the CPU) and the root key of the noise."""

    count: torch.Tensor  # type: ignore[assignment] # hides tuple.count, of no use here
    key: Key


def gradient_noise(eta: float, gamma: float = 0.55, *, seed: int = 0, draws: Draws = "portable") -> Transform:
    """Add normal noise of variance ``eta / (1 + t) ** gamma`` to every element, ``t`` counting the updates from 0.

    The noise of an update is a function of the key and the count in the state: a run that is resumed gets the
    same. It is drawn in float32, for the leaves one after another in canonical order.

    From [Neelakantan et al.](https://arxiv.org/abs/1511.06807), who use ``eta`` of 0.01, 0.3 or 1 and ``gamma=0.55``.

    Args:
        eta: the variance at the first update.
        gamma: how fast it falls.
        seed: of the key.
        draws: ``"portable"`` draws are the same on every device, compiled, and under ``vmap`` (their last bits
            may differ, see `helios_fn.random.normal`); ``"native"`` ones come from torch's generator at 6 to 16
            times the speed where nothing is compiled, are other numbers, and cannot be traced.

    Raises:
        TypeError: an argument is of the wrong kind; in ``init``, a parameter is complex; in a traced
            ``update``, the draws are native.
        ValueError: ``eta`` or ``gamma`` is negative.
    """
    made = _Noise(
        eta=number("eta", eta, low=0.0),
        gamma=number("gamma", gamma, low=0.0),
        seed=seed,
        draws=choice("draws", draws, Draws),
        root=random.fold_in(random.key(seed), "gradient_noise"),
    )
    return Transform(made.init, made.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Noise:
    eta: float
    gamma: float
    seed: int
    draws: Draws
    root: Key = dataclasses.field(compare=False)
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> NoiseState:
        updatable_leaves(params)
        for path, leaf in tree.items(params):
            if leaf.is_complex():
                raise TypeError(f"{at('params', path)} is {tree.describe(leaf)}: gradient_noise is for real parameters")
        return NoiseState(torch.zeros((), dtype=torch.int64, device="cpu"), self.root.clone())

    def update(self, grads: Tree, state: NoiseState, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, NoiseState]:
        leaves, treespec = self.flatten(grads)
        after = NoiseState(state.count + 1, state.key)
        if not leaves:
            return grads, after
        deviation = math.sqrt(self.eta) / (1.0 + state.count.to(torch.float64)) ** (self.gamma / 2)
        noise = self._standard(random.fold_in(state.key, state.count), sum(leaf.numel() for leaf in leaves), leaves)
        pieces = torch.split(noise, [leaf.numel() for leaf in leaves])
        found = [_noisy(leaf, piece, deviation) for leaf, piece in zip(leaves, pieces, strict=True)]
        return tree.unflatten(treespec, found), after

    def _standard(self, key: Key, size: int, leaves: list[torch.Tensor]) -> torch.Tensor:
        """One draw for all leaves: a draw costs some hundred operations, however small it is."""
        device = leaves[0].device
        if self.draws == "portable":
            return random.normal(key, size, device=device)
        if is_traced():
            raise TypeError("gradient_noise(draws='native') cannot be traced: choose draws='portable'")
        return torch.randn(size, dtype=torch.float32, device=device, generator=random.generator(key, device))

    def __repr__(self) -> str:
        return call("gradient_noise", {name: getattr(self, name) for name in ("eta", "gamma", "seed", "draws")})


def _noisy(leaf: torch.Tensor, piece: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    wide = piece.reshape(leaf.shape).to(leaf.device, torch.promote_types(leaf.dtype, torch.float32))
    return (leaf + wide * deviation.to(wide.device, wide.dtype)).to(leaf.dtype)
