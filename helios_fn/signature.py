"""Recognising a list of tensors of which all that kernels depend on, except the values, is as it was before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_Guards: Any = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "TensorGuards", None)


class Signature:
    """The types, shapes, strides, dtypes, devices and properties (conjugate, sparse, ...) of a list of tensors.

    Keeps none of them alive. Where autograd records, a tensor that requires gradients matches none that does not.
    """

    __slots__ = ("_count", "_matches")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._count = len(tensors)
        self._matches = guards(tensors) or comparison(tensors)

    def matches(self, tensors: Sequence[Any]) -> bool:
        """Whether others are just like these."""
        return len(tensors) == self._count and self._matches(*tensors)


def guards(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """The compiler's own check of its inputs, a tenth of a microsecond per tensor; not a public interface."""
    if _Guards is None:
        return None
    try:
        check: Callable[..., bool] = _Guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        return check if check(*tensors) else None
    except (TypeError, ValueError, RuntimeError):
        return None


def comparison(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """The same in Python, five times as slow."""
    kinds = [_kind(tensor) for tensor in tensors]
    return lambda *others: all(_kind(other) == kind for other, kind in zip(others, kinds, strict=True))


def _kind(tensor: Any) -> tuple[Any, ...]:
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        return (type(tensor),)
    recorded = torch.is_grad_enabled() and tensor.requires_grad
    flags = (tensor.is_conj(), tensor.is_neg(), tensor.is_inference(), recorded)
    return (type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, flags)
