"""The gradient function of a ``loss_fn``. What is wrong with the function is said in its author's words."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from .. import tree
from ..tracing import is_traced
from ..types import Aux, Tree
from .grad import value_and_grad
from .microsteps import GradFn

LossFn: TypeAlias = Callable[[Any, Any, Any, Any], Any]
"""``loss_fn(params, buffers, batch, key)`` returns a 0-d loss, or a pair of it and an `Aux`."""


def loss_grad(loss_fn: LossFn) -> GradFn:
    """The gradient function of ``loss_fn`` with respect to its params, as `microsteps` calls it.

    Unlike `value_and_grad` by itself it refuses a loss that depends on no parameter, for such a loss trains
    nothing; but micro-batches of weight 0, which have no part in anything, may have one.

    Raises:
        TypeError: ``loss_fn`` cannot be called with four arguments; when it is called, it returns something
            else than a floating point loss and an `Aux`, or hands the `Aux` its metrics as buffers.
        ValueError: when it is called, the loss is not 0-d or does not depend on the params.
    """
    return value_and_grad(checked(loss_fn), has_aux=True, on_constant=refuse_constant)


def checked(loss_fn: LossFn) -> Callable[[Tree, Tree, Any, Any], tuple[torch.Tensor, Aux]]:
    """``loss_fn``, refused if it cannot be called, and what it returns read as a loss and an `Aux`; see `loss_grad`."""
    _check_signature(loss_fn)

    def call(params: Tree, buffers: Tree, batch: Any, key: Any) -> tuple[torch.Tensor, Aux]:
        loss, aux = _read(loss_fn(params, buffers, batch, key))
        new = aux.buffers
        if new is not None and new is not buffers:
            _check_buffers(new, buffers)
        return loss, aux

    return call


def _check_signature(loss_fn: Any) -> None:
    wanted = "loss_fn must be a function of (params, buffers, batch, key)"
    if not callable(loss_fn):
        raise TypeError(f"{wanted}, got {tree.describe(loss_fn)}")
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):
        return  # some callables do not tell
    try:
        signature.bind(None, None, None, None)
    except TypeError as error:
        raise TypeError(f"{wanted}, but it has the signature {signature}: {error}") from None


def _read(returned: Any) -> tuple[torch.Tensor, Aux]:
    loss, aux = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(loss, torch.Tensor) or not (aux is None or isinstance(aux, Aux)):
        raise TypeError(
            f"loss_fn must return a 0-d loss tensor or (loss, hf.Aux(...)), got {_described(returned)}"
            f"{_remedy(returned, loss, aux)}"
        )
    if not loss.is_floating_point() and not loss.is_complex():
        raise TypeError(f"the loss must be a floating point tensor, got {tree.describe(loss)}: it has no gradient")
    return loss, Aux() if aux is None else aux


def _described(returned: Any) -> str:
    if isinstance(returned, Aux):
        return "an Aux alone"
    if isinstance(returned, tuple):
        return f"a tuple of {len(returned)}: ({', '.join(map(_in_short, returned))})"
    return tree.describe(returned)


def _in_short(value: Any) -> str:
    return "hf.Aux(...)" if isinstance(value, Aux) else tree.describe(value)


def _remedy(returned: Any, loss: Any, aux: Any) -> str:
    if returned is None:
        return ": is there a return?"
    if isinstance(loss, numbers.Real):
        return ": a number has no gradient, so leave .item() and float() away"
    if isinstance(loss, torch.Tensor) and isinstance(aux, Mapping):
        return ": write (loss, hf.Aux(metrics=...)) or (loss, hf.Aux(buffers=...))"
    return ""


def _check_buffers(new: Any, old: Tree) -> None:
    """Refuse metrics or a weight in the place of buffers. What is like the old buffers costs nothing here."""
    if type(new) is dict is type(old) and new.keys() == old.keys():
        return
    wrong = "Aux's first argument is buffers"
    if isinstance(new, Mapping):
        names = old if isinstance(old, Mapping) else {}
        if new and not any(name in names for name in new):
            known = f"names in state.buffers are {_some(names)}" if names else "state.buffers has no names"
            raise TypeError(f"{wrong}: write metrics=... if {_some(new)} are metrics ({known})")
    elif isinstance(new, numbers.Real | torch.Tensor) and not isinstance(old, numbers.Real | torch.Tensor):
        raise TypeError(f"{wrong}, got {tree.describe(new)}: write weight=... if it is the weight")


def _some(names: Mapping[Any, Any]) -> str:
    shown = [repr(name) for name in list(names)[:3]]
    return ", ".join([*shown, "..."] if len(names) > len(shown) else shown)


def refuse_constant(aux: Aux) -> None:
    """Refuse a loss without a gradient, unless it has no part in anything."""
    weight = aux.weight
    if isinstance(weight, torch.Tensor):
        if is_traced() or weight.numel() != 1 or bool(weight == 0):
            return  # of no part, or not to be known here, or refused where weights are read
    elif isinstance(weight, numbers.Real) and weight == 0:
        return
    raise ValueError(
        "the loss does not depend on params: was it detached, made by .item() or torch.tensor(), "
        "or computed with other weights than the params that loss_fn was called with?"
    )
