"""Gradients by way of a scaled loss, so that small ones survive a backward pass in float16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from .. import tree
from ..accumulate import widen
from ..tracing import by_formula
from ..types import Aux, Key, Tree
from .grad import value_and_grad
from .loss import LossFn, checked, loss_grad, refuse_constant
from .microsteps import GradFn

ScaledGradFn: TypeAlias = Callable[[Tree, Tree, Any, Key, torch.Tensor], tuple[tuple[torch.Tensor, Aux], Tree]]


def scaled_grad(loss_fn: LossFn, *, around_grad: Callable[[GradFn], GradFn] | None = None) -> ScaledGradFn:
    """The gradient function of ``loss_fn`` by way of ``scale * loss``, divided by ``scale`` again.

    ``grad_fn(params, buffers, batch, key, scale) -> ((loss, aux), grads)`` with a 0-d float32 ``scale``.

    The loss that comes back is not scaled, nor are the gradients: whoever reads them, a clipping say, sees them
    as they are. What overflowed on the way is infinite or NaN there, which `helios_fn.optim.loss_scaled` waits for.
    For a step of one's own:

        grad_fn = scaled_grad(autocast(loss_fn, torch.float16))
        optimizer = optim.loss_scaled(optim.adamw(1e-3))

        def step(state, batch):
            scale = optim.loss_scale(state.opt_state).scale
            mean = microsteps(functools.partial(grad_fn, scale=scale), state, batch)
            params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params, weight=mean.weight)
            ...

    The division is a multiplication by the reciprocal, as in torch's ``GradScaler``; by a power of 2 it is exact.

    Args:
        loss_fn: as for `make_step`.
        around_grad: wraps the gradient function, as for `make_step`; it sees gradients that are not scaled.

    Raises:
        TypeError: as `make_step` does, of ``loss_fn``.
    """
    call = checked(loss_fn)

    def scaled(params: Tree, buffers: Tree, batch: Any, key: Key, scale: torch.Tensor) -> tuple[torch.Tensor, Any]:
        loss, aux = call(params, buffers, batch, key)
        return widen(loss) * scale.to(loss.device), (loss, aux)

    both = value_and_grad(scaled, has_aux=True, on_constant=lambda pair: refuse_constant(pair[1]))
    flatten = tree.Flattener()

    def grad_fn(
        params: Tree, buffers: Tree, batch: Any, key: Key, scale: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, Aux], Tree]:
        def unscaled(params: Tree, buffers: Tree, batch: Any, key: Key) -> Any:
            (_, (loss, aux)), grads = both(params, buffers, batch, key, scale)
            leaves, treespec = flatten(grads)
            return (loss, aux), tree.unflatten(treespec, _divided(leaves, scale))

        around = unscaled if around_grad is None else around_grad(unscaled)
        return around(params, buffers, batch, key)  # type: ignore[return-value]

    return grad_fn


class Gradients(NamedTuple):
    """The two gradient functions of a loss: by itself, and by way of the scaled loss."""

    plain: GradFn
    scaled: ScaledGradFn

    def at(self, scale: torch.Tensor) -> GradFn:
        """The second with a scale."""
        return lambda params, buffers, batch, key: self.scaled(params, buffers, batch, key, scale)


def gradients_of(loss_fn: LossFn, around_grad: Callable[[GradFn], GradFn] | None = None) -> Gradients:
    """Both of ``loss_fn``, wrapped by ``around_grad``; see `loss_grad` and `scaled_grad`."""
    plain = loss_grad(loss_fn)
    return Gradients(
        plain if around_grad is None else around_grad(plain), scaled_grad(loss_fn, around_grad=around_grad)
    )


def _divided(grads: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor]:
    if not grads:
        return grads
    if by_formula((*grads, scale)):
        inverse = scale.double().reciprocal().float()
        return [(grad * inverse.to(grad.device)).to(grad.dtype) for grad in grads]
    return list(torch._foreach_mul(grads, float(np.float32(1 / scale.item()))))
