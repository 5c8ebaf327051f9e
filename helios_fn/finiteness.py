"""Whether tensors are free of NaN and infinities, at the least cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .tracing import is_traced

_SMALL = 4096  # elements


def all_finite(leaves: Iterable[Any]) -> bool | torch.Tensor:
    """Whether all floating and complex tensors are free of NaN and infinities.

    A Python value for concrete tensors on the CPU, where reading it costs nothing; else a 0-d bool tensor on
    their device.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    on_cpu = not is_traced() and all(leaf.is_cpu for leaf in tensors)
    if on_cpu and _has_finite_norms(tensors):
        return True
    inexact = [_real(leaf) for leaf in tensors if leaf.numel() and _is_inexact(leaf)]
    if on_cpu:
        return all(bool(leaf.isfinite().all()) for leaf in inexact)
    if not inexact:
        return True
    if is_traced():
        return torch.stack([leaf.isfinite().all() for leaf in inexact]).all()
    # The maximum norm is NaN or infinite exactly when an element is; a sum could overflow by itself.
    return torch.stack([norm.float() for norm in torch._foreach_norm(inexact, ord=torch.inf)]).isfinite().all()


def _has_finite_norms(leaves: list[torch.Tensor]) -> bool:
    """Whether the Euclidean norms are finite: quick, and yes only if all elements are, but a norm may overflow."""
    # One kernel over a copy of all small tensors; the copy of large ones would cost more than kernels for each.
    small: list[torch.Tensor] = []
    large: list[torch.Tensor] = []
    for leaf in leaves:
        (small if leaf.numel() <= _SMALL else large).append(leaf)
    try:
        total = 0.0
        if small:
            flat = torch._utils._flatten_dense_tensors(small)
            total = torch.dot(flat, flat).item()
        if large:
            for norm in torch._foreach_norm(large):
                total += norm.item()
        return math.isfinite(total)
    except (RuntimeError, TypeError):
        return False  # Booleans, complex numbers, and types of 8 bits have no such kernels


def _is_inexact(leaf: torch.Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _real(leaf: torch.Tensor) -> torch.Tensor:
    if leaf.is_complex():
        return torch.view_as_real(leaf.resolve_conj())
    # The norm has no kernels for types of 8 bits; they convert to float32 exactly.
    return leaf.float() if leaf.element_size() == 1 else leaf
