"""Running averages of the parameters, kept in the state and used for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from .. import tree
from ..dtensors import any_sharded, around, local
from ..types import Scalar, Tree
from .lerp import copies, toward

Weight: TypeAlias = Scalar | torch.Tensor


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


def ema(decay: float | Callable[[Any], Any] = 0.999, *, warmup: bool = False) -> Average:
    """The exponential moving average ``shadow = decay * shadow + (1 - decay) * params``.

        average = ema(0.999)
        average = ema(0.9999, warmup=True)                      # min(0.9999, (1 + count) / (10 + count))
        average = ema(schedules.linear(0.99, 0.9999, 10_000))   # any function of the number of updates

    Computed as ``torch.lerp(shadow, params, 1 - decay)``, so that the average of equal parameters is
    exactly these. The first shadow is the initial parameters. Half precision parameters have a float32
    shadow: in their own dtype ``1 - decay`` would mostly round to no change. Integer tensors and Python
    scalars are copied, not averaged.

    Args:
        decay: a number, or a function of the number of updates made, the present one included. Where that is
            a tensor (in a compiled region, or mapped) the function must be made of tensor operations.
        warmup: follow the parameters more closely in the beginning, when the shadow is still that of the initial ones.

    Raises:
        TypeError: ``warmup`` is given for a function, which can have its own.
        ValueError: ``decay`` is not in ``0 <= decay < 1``; in ``update``, a function returned something that is not
            in ``0 <= decay <= 1`` (values of tensors are not looked at).

    Example:
        >>> average = hf.ema(0.5)
        >>> shadow = average.init({"w": torch.tensor(0.0)})
        >>> average.update(shadow, {"w": torch.tensor(8.0)}, count=1)["w"].item()
        4.0
    """
    if callable(decay):
        if warmup:
            raise TypeError("warmup=True is for a decay that is a number: let the function of the count begin lower")
        return _following(lambda count: 1 - _checked(decay(count), count))
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise ValueError(f"decay must be a number with 0 <= decay < 1, got {decay!r}")
    if not warmup:
        return _following(lambda count: 1 - decay)

    def warming(count: Any) -> Any:
        if isinstance(count, torch.Tensor):
            count = count.to(torch.float64)
            return 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        return 1 - min(decay, (1 + count) / (10 + count))

    return _following(warming)


def swa(start: int, *, every: int = 1) -> Average:
    """The mean of the parameters after updates ``start``, ``start + every``, ``start + 2 * every``, ...

        average = swa(start=7500, every=100)

    Stochastic weight averaging: all have the same weight, and the mean is taken along the way, as
    ``torch.lerp(shadow, params, 1 / n)`` with the ``n``-th of them; these are the bits of torch's ``AveragedModel``
    where it has its ``get_swa_multi_avg_fn()``. Up to ``start`` the shadow is a copy of the parameters, so that it can
    be evaluated at any time. The number of terms follows from the number of updates and is not stored. Dtypes are
    those of `ema`.

    Batch statistics belong to the weights that they were measured with: for a network with batch norm call
    `helios_fn.refresh_batch_norm` with the averages before they are evaluated.

    From [Izmailov et al.](https://arxiv.org/abs/1803.05407), who let the learning rate be high and constant, or cyclic,
    from ``start`` on.

    Args:
        start: the number of updates after which the first parameters are taken; 0 are the initial ones.
        every: how many updates apart they are.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: ``start`` is negative, or ``every`` below 1.
    """
    for name, value, low in (("start", start, 0), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, a number of updates, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")

    def weight(count: Any) -> Any:
        if isinstance(count, torch.Tensor):
            past = (count - start).clamp(min=0)
            share = 1 / (1 + torch.div(past, every, rounding_mode="floor")).to(torch.float64)
            return torch.where(past % every == 0, share, 0.0)
        past = max(count - start, 0)
        return 0.0 if past % every else 1 / (1 + past // every)

    return _following(weight)


def _following(weight: Callable[[Any], Weight]) -> Average:
    """The average that moves to the parameters by ``weight(count)``."""
    flatten_shadow, flatten_params = tree.Flattener(), tree.Flattener()

    def init(params: Tree) -> Tree:
        leaves, treespec = tree.flatten(params)
        return tree.unflatten(treespec, copies(leaves))

    def update(shadow: Tree, params: Tree, count: Any, donate: bool = False) -> Tree:
        old, treespec = flatten_shadow(shadow)
        new, other = flatten_params(params)
        if treespec != other:
            raise ValueError(f"the average has another structure than the params: {treespec} != {other}")
        share = weight(count)
        if not isinstance(share, torch.Tensor) and share == 0:
            return shadow
        if any_sharded(new):
            parts = toward([local(leaf) for leaf in old], [local(leaf) for leaf in new], share, donate=donate)
            return tree.unflatten(treespec, [around(part, leaf) for part, leaf in zip(parts, old, strict=True)])
        return tree.unflatten(treespec, toward(old, new, share, donate=donate))

    return Average(init, update)


def _checked(decay: Any, count: Any) -> Any:
    if isinstance(count, torch.Tensor) or isinstance(decay, torch.Tensor):
        return decay
    if not 0 <= decay <= 1:
        raise ValueError(f"the decay must be in 0 <= decay <= 1, but the function returned {decay!r} at update {count}")
    return decay
