"""A transform for some of the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

from ... import tree
from ...types import Tree
from ..base import Optimizer, Transform, hint
from ..selection import Patterns, Selection
from ..text import brief


def masked(transform: Transform, patterns: Patterns) -> Transform:
    """Apply a transform to the gradients of some parameters; those of others pass unchanged.

        masked(clip_by_global_norm(1.0), "encoder.*")
        masked(adaptive_clip(), ["!head.*", "!*.bias"])

    The transform sees trees in which the others are absent (an empty tuple), and keeps no memory of them; a norm is the
    norm of what it sees.

    Args:
        transform: what to apply.
        patterns: shell patterns over the whole name of a parameter, its path with dots, such as
            ``layers.0.weight`` (``*`` matches dots too), or a function of the name. Chosen is what a pattern
            matches and none with a leading ``!``; where all have one, everything else.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: there are no patterns; in ``init``, a pattern matches no parameter.

    Example:
        >>> transform = hf.optim.masked(hf.optim.clip_by_value(1.0), "!*.bias")
        >>> params = {"head.weight": torch.tensor([9.0]), "head.bias": torch.tensor([9.0])}
        >>> transform.update(params, transform.init(params), params)[0]
        {'head.weight': tensor([1.]), 'head.bias': tensor([9.])}
    """
    if not isinstance(transform, Transform):
        remedy = ": chain transforms before an optimiser" if isinstance(transform, Optimizer) else hint(transform)
        raise TypeError(f"masked() applies a Transform, got {brief(transform)}{remedy}")
    made = _Masked(transform, Selection("patterns", patterns))
    return Transform(made.init, made.update)


@dataclasses.dataclass(frozen=True, slots=True)
class _Masked:
    transform: Transform
    chosen: Selection
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)
    flatten_chosen: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> Tree:
        self.chosen.check(params)
        leaves, treespec = tree.flatten(params)
        mask = self.chosen(params, treespec)
        return self.transform.init(_thinned(treespec, leaves, mask))

    def update(self, grads: Tree, state: Tree, params: Tree, *, weight: Any = 1.0) -> tuple[Tree, Tree]:
        leaves, treespec = self.flatten(grads)
        mask = self.chosen(grads, treespec)
        thin_grads = _thinned(treespec, leaves, mask)
        thin_params = _thinned(treespec, self.flatten(params)[0], mask)
        found, state = self.transform.update(thin_grads, state, thin_params, weight=weight)
        new = iter(self.flatten_chosen(found)[0])
        return tree.unflatten(treespec, [next(new) if m else leaf for leaf, m in zip(leaves, mask, strict=True)]), state

    def __repr__(self) -> str:
        return f"masked({self.transform!r}, {self.chosen!r})"


def _thinned(treespec: Any, leaves: list[Any], mask: tuple[bool, ...]) -> Tree:
    """The tree with an empty tuple, which has no leaves, at the places that are not chosen."""
    return tree.unflatten(treespec, [leaf if m else () for leaf, m in zip(leaves, mask, strict=True)])
