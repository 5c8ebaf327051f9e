"""Gradients of the worst loss nearby (SAM), as a wrapper of gradient functions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch

from .. import random, tree
from ..accumulate import widen
from ..dtensors import any_sharded
from ..tracing import is_traced
from ..types import Key, Tree
from .microsteps import GradFn

_TINY = 1e-12


def sam(rho: float = 0.05, *, adaptive: bool = False, eta: float = 0.01) -> Callable[[GradFn], GradFn]:
    """Sharpness-aware minimisation: take the gradient where the loss within ``rho`` is (nearly) the largest.

        step = make_step(loss_fn, optimizer, around_grad=sam(0.05))
        grad_fn = sam(0.05)(value_and_grad(loss_fn, has_aux=True))       # for a step of one's own

    A gradient function ``grad_fn(params, buffers, batch, key) -> ((loss, aux), grads)`` becomes one that calls it
    twice: at ``params``, which gives the loss, ``aux`` with its buffers and metrics, and the gradient ``g``; and at
    ``params + rho * g / (norm(g) + 1e-12)``, whose gradient is returned. Both passes get the same buffers, batch and
    key, and see the same noise (in a compiled region, if it is drawn from the key: ``functional(...,
    draws="keyed")``). The offset is a constant to derivatives, as in the paper.

    Inside an iteration of several micro-batches each has its own offset (the paper's m-sharpness), so accumulation
    and the number of processes change nothing else. A zero gradient gives a zero offset.

    From [Foret et al.](https://arxiv.org/abs/2010.01412); ``adaptive`` is ASAM from
    [Kwon et al.](https://arxiv.org/abs/2102.11600).

    Args:
        rho: the radius. The papers use 0.05 (SAM) and 0.5 (ASAM).
        adaptive: measure the distance relative to the size of each weight: the offset is
            ``rho * t**2 * g / norm(t * g)`` with ``t = abs(params) + eta``.
        eta: of ``adaptive``.

    Raises:
        ValueError: ``rho`` or ``eta`` is negative or not finite.
    """
    for name, value in (("rho", rho), ("eta", eta)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")

    def around(grad_fn: GradFn) -> GradFn:
        flatten = tree.Flattener()

        def sharp(params: Tree, buffers: Tree, batch: Any, key: Key) -> tuple[tuple[torch.Tensor, Any], Tree]:
            with _noise(key):
                first, grads = grad_fn(params, buffers, batch, key)
            leaves, treespec = flatten(params)
            if any_sharded(leaves):
                raise TypeError(
                    "sam() takes the norm of each micro-batch's gradient, and of sharded params there is only that of "
                    "all processes together: leave it out, or do not shard the params"
                )
            gradients, _ = flatten(grads)
            away = _offset(leaves, gradients, rho, eta if adaptive else None)
            with _noise(key):
                _, grads = grad_fn(tree.unflatten(treespec, away), buffers, batch, key)
            return first, grads

        return sharp

    return around


def _noise(key: Key) -> contextlib.AbstractContextManager[Any]:
    """A scope of its own for each pass, so that both draw the same; a key without a value cannot be scoped."""
    return contextlib.nullcontext() if random.is_traced(key) else random.scope(key)


def _offset(params: list[torch.Tensor], grads: list[torch.Tensor], rho: float, eta: float | None) -> list[torch.Tensor]:
    """The parameters, moved by ``rho`` along the gradient."""
    if not params:
        return params
    grads = [grad.detach() for grad in grads]
    if eta is None:
        return _moved(params, grads, rho / (_norm(grads) + _TINY))
    sizes = [param.detach().abs() + eta for param in params]
    scaled = [grad * size for grad, size in zip(grads, sizes, strict=True)]
    ways = [way * size for way, size in zip(scaled, sizes, strict=True)]
    return _moved(params, ways, rho / (_norm(scaled) + _TINY))


def _norm(leaves: list[torch.Tensor]) -> torch.Tensor:
    if is_traced():
        norms = [torch.linalg.vector_norm(widen(leaf)) for leaf in leaves]
    else:
        norms = list(torch._foreach_norm([widen(leaf) for leaf in leaves]))
    widest = torch.float64 if any(norm.dtype is torch.float64 for norm in norms) else torch.float32
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, widest) for norm in norms]))


def _moved(params: list[torch.Tensor], ways: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor]:
    if not is_traced() and all(param.dtype is scale.dtype and param.device == scale.device for param in params):
        return list(torch._foreach_add(params, torch._foreach_mul(ways, scale)))
    # The scale has its own dtype, to which a 0-d parameter would be promoted.
    return [(param + way * scale.to(param.device)).to(param.dtype) for param, way in zip(params, ways, strict=True)]
