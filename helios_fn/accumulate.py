"""The arithmetic of accumulated gradients: a weighted sum of lists of tensors, then one division.

    acc = scale(g0, w0);  add_(acc, scale(g1, w1));  ...;  mean = divide(acc, w0 + w1 + ..., like=g0)

Whoever accumulates uses these functions in this order, so that all of them get the same bits: a
product is rounded before it is added (never fused), in the dtype of the leaf, half precisions in
float32 (a weight of some thousand tokens would overflow float16, and bfloat16 loses small terms).
A weight is a Python number or a 0-d tensor. A term of weight 0 is exactly zero whatever it holds,
NaN and infinities included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .tracing import is_traced
from .types import Scalar

_HALVES = (torch.float16, torch.bfloat16)


def zeros(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """An empty accumulator for ``leaves``: equal shapes, and the dtypes that `scale` returns."""
    return [torch.zeros_like(leaf, dtype=accumulator_dtype(leaf)) for leaf in leaves]


def scale(leaves: Sequence[torch.Tensor], weight: Scalar | torch.Tensor) -> list[torch.Tensor]:
    """``weight * leaves`` in new tensors that share no memory with ``leaves`` and may be added to in place."""
    if isinstance(weight, torch.Tensor):
        # Not the product alone: 0 * NaN is NaN.
        return [torch.where(weight == 0, 0, leaf * weight) for leaf in _widened(leaves)]
    if not leaves or weight == 0:
        return zeros(leaves)
    if weight == 1:
        return [leaf.to(accumulator_dtype(leaf), copy=True) for leaf in leaves]
    if is_traced():
        return [leaf * weight for leaf in _widened(leaves)]
    return list(torch._foreach_mul(_widened(leaves), weight))


def scale_(leaf: torch.Tensor, weight: Scalar | torch.Tensor) -> None:
    """``leaf *= weight`` with the bits of `scale`; ``leaf`` has the dtype of sums already."""
    if isinstance(weight, torch.Tensor):
        leaf.copy_(torch.where(weight == 0, 0, leaf * weight))
    elif weight == 0:
        leaf.zero_()
    elif weight != 1:
        leaf.mul_(weight)


def add_(acc: list[torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
    """``acc += leaves``, in place where torch can (under a transform the list gets new tensors)."""
    if is_traced():
        acc[:] = [leaf + other for leaf, other in zip(acc, leaves, strict=True)]
    elif acc:
        torch._foreach_add_(acc, list(leaves))


def divide(
    acc: Sequence[torch.Tensor],
    total: Scalar | torch.Tensor,
    *,
    like: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """``acc / total`` in new tensors, or zeros where ``total`` is 0; in the dtypes of ``like`` if given."""
    if isinstance(total, torch.Tensor):
        found = [torch.where(total == 0, 0, leaf / total) for leaf in acc]
    elif not acc or total == 0:
        found = [torch.zeros_like(leaf) for leaf in acc]
    elif is_traced():
        found = [leaf / total for leaf in acc]
    else:
        found = list(torch._foreach_div(list(acc), total))
    return found if like is None else [leaf.to(other.dtype) for leaf, other in zip(found, like, strict=True)]


def widen(leaf: torch.Tensor) -> torch.Tensor:
    """``leaf`` in the dtype that sums are kept in: float32 for half precisions, else itself."""
    return leaf.float() if leaf.dtype in _HALVES else leaf


def accumulator_dtype(leaf: torch.Tensor) -> torch.dtype:
    """The dtype that sums of ``leaf`` are kept in: float32 for half precisions, else its own."""
    return torch.float32 if leaf.dtype in _HALVES else leaf.dtype


def _widened(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [widen(leaf) for leaf in leaves]
