"""Running averages of the parameters, kept in the state and used for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import tree
from ..accumulate import widen
from ..dtensors import any_sharded, around, local
from ..tracing import by_formula, stored
from ..types import Tree


class Average(NamedTuple):
    """A pure average of parameters.

    ``init(params) -> shadow`` makes the first one; ``update(shadow, params, count, donate=False) -> shadow``
    makes the next from the parameters after an update, ``count`` being the number of updates made by
    then. The shadow has the structure and shapes of the parameters and shares no memory with them. With
    ``donate`` the caller gives up the old shadow, and the same bits may be written into its memory.

    In a compiled region, under a ``torch.func`` transform, and where autograd records an input, ``update``
    consists of out-of-place tensor operations, so it can be compiled, mapped and differentiated.
    """

    init: Callable[[Tree], Tree]
    update: Callable[..., Tree]


def ema(decay: float = 0.999) -> Average:
    """The exponential moving average ``shadow = decay * shadow + (1 - decay) * params``.

    Computed as ``torch.lerp(shadow, params, 1 - decay)``, so that the average of equal parameters is
    exactly these. The first shadow is the initial parameters. Half precision parameters have a float32
    shadow: in their own dtype ``1 - decay`` would mostly round to no change. Integer tensors and Python
    scalars are copied, not averaged.

    Raises:
        ValueError: ``decay`` is not in ``0 <= decay < 1``.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise ValueError(f"decay must be a number with 0 <= decay < 1, got {decay!r}")
    flatten_shadow, flatten_params = tree.Flattener(), tree.Flattener()

    def init(params: Tree) -> Tree:
        return tree.map(_copy, params)

    def update(shadow: Tree, params: Tree, count: Any, donate: bool = False) -> Tree:
        old, treespec = flatten_shadow(shadow)
        new, other = flatten_params(params)
        if treespec != other:
            raise ValueError(f"the average has another structure than the params: {treespec} != {other}")
        if any_sharded(new):
            with torch.no_grad():
                parts = _lerp([local(leaf) for leaf in old], [local(leaf) for leaf in new], 1 - decay, donate)
            return tree.unflatten(treespec, [around(part, leaf) for part, leaf in zip(parts, old, strict=True)])
        if by_formula((*old, *new)):
            found = [_between(start, end, 1 - decay) for start, end in zip(old, new, strict=True)]
            return tree.unflatten(treespec, stored(found, old, donate=donate))
        with torch.no_grad():
            return tree.unflatten(treespec, _lerp(old, new, 1 - decay, donate))

    return Average(init, update)


def _between(start: Any, end: Any, weight: float) -> Any:
    return torch.lerp(start, widen(end), weight) if _is_averaged(end) else _copy(end)


def _lerp(old: list[Any], new: list[Any], weight: float, donate: bool) -> list[Any]:
    moving = [index for index, leaf in enumerate(new) if _is_averaged(leaf)]
    starts, ends = [old[index] for index in moving], [widen(new[index]) for index in moving]
    if donate and _apart(starts, ends):
        between = starts
        if moving:
            torch._foreach_lerp_(starts, ends, weight)
    else:
        between = list(torch._foreach_lerp(starts, ends, weight)) if moving else []
    if len(moving) == len(new):
        return between
    averaged = iter(between)
    return [next(averaged) if _is_averaged(leaf) else _copy(leaf) for leaf in new]


def _apart(starts: list[torch.Tensor], ends: list[torch.Tensor]) -> bool:
    """Whether the first can be overwritten: no elements of theirs share memory, and none with the second."""
    places = [leaf.data_ptr() for leaf in (*starts, *ends)]
    return len(set(places)) == len(places) and not any(torch._debug_has_internal_overlap(leaf) for leaf in starts)


def _copy(leaf: Any) -> Any:
    return widen(leaf.detach()).clone() if isinstance(leaf, torch.Tensor) else leaf


def _is_averaged(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
