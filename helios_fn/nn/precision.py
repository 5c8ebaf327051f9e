"""Functions of the parameters in lower precision: autocast as a wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from .. import tree
from ..accumulate import widen

Precision: TypeAlias = Literal["bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
F = TypeVar("F", bound=Callable[..., Any])


def autocast(fn: F, dtype: torch.dtype = torch.bfloat16) -> F:
    """``fn(params, ...)`` under ``torch.autocast``: matrix products in ``dtype``, what needs it in float32.

        step = make_step(autocast(loss_fn), optimizer)          # the same as make_step(..., precision="bf16")
        validate = Validator(autocast(evaluate), loader)
        grad_fn = value_and_grad(autocast(loss_fn), has_aux=True)

    Parameters stay what they are, float32 as a rule, and so do gradients, buffers and the optimiser's memory. The
    backward pass runs in the dtypes of the forward pass, as torch recommends. A loss in half precision, be it returned
    alone or as the first of a pair, is returned in float32, for ``loss / n`` and a loss scale need its range.

    The result is a function like ``fn``, to be compiled, mapped, differentiated and wrapped by ``around_grad``. The
    device is that of the first tensor among the arguments. Casts of weights are not cached: each use makes its own,
    so that ``torch.autograd`` and ``torch.func`` give the same bits. (What torch cannot do: map batch norms by ``vmap``
    where input and weights differ in dtype.)

    float16 has little range: small gradients become zero without a loss scale, see `helios_fn.optim.loss_scaled`.

    Raises:
        TypeError: ``fn`` is no function.
        ValueError: ``dtype`` is neither ``torch.bfloat16`` nor ``torch.float16``.

    Example:
        >>> def product(params, x):
        ...     return (x @ params["w"]).dtype
        >>> hf.autocast(product)({"w": torch.ones(2, 2)}, torch.ones(1, 2))
        torch.bfloat16
    """
    if not callable(fn):
        raise TypeError(f"autocast() takes a function of (params, ...), got {tree.describe(fn)}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype!r}")

    @functools.wraps(fn)
    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_of(args), dtype, cache_enabled=False):
            return _widened(fn(*args, **kwargs))

    return cast  # type: ignore[return-value]  # a function of the same arguments


def cast_by(fn: F, precision: Precision | None) -> F:
    """``fn`` in a precision by its name.

    Raises:
        ValueError: there is no precision of that name.
    """
    if precision is None:
        return fn
    if precision not in DTYPES:
        raise ValueError(
            f"precision must be {', '.join(map(repr, DTYPES))} or None (that of the parameters), got {precision!r}"
        )
    return autocast(fn, DTYPES[precision])


def _device_of(args: Any) -> str:
    first = _first_tensor(args)
    return "cpu" if first is None else first.device.type


def _first_tensor(node: Any) -> torch.Tensor | None:
    """Looked for by hand: to flatten all parameters for it would cost more than the rest."""
    if isinstance(node, torch.Tensor):
        return node
    if not isinstance(node, dict | tuple | list):
        return next(iter(tree.tensors(node)), None)
    for child in node.values() if isinstance(node, dict) else node:
        found = _first_tensor(child)
        if found is not None:
            return found
    return None


def _widened(returned: Any) -> Any:
    """What ``fn`` returned, with its loss in float32."""
    if type(returned) is tuple and len(returned) == 2:
        loss, rest = returned
        return _widened_loss(loss), rest
    return _widened_loss(returned)


def _widened_loss(loss: Any) -> Any:
    return widen(loss) if isinstance(loss, torch.Tensor) and loss.dim() == 0 else loss
