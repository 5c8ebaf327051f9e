"""Whether tensors are free of NaN and infinities, at the least cost."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch

from .dtensors import any_sharded, is_sharded, local, mesh_of, over_ranks
from .tracing import is_traced

_SMALL = 4096  # elements of a tensor
_COPIED = 1 << 16  # elements altogether
_ONE = torch.ones(1, device="cpu")
_zeros: list[torch.Tensor] = []  # one for each thread that was here at once
_flatten = torch._C._nn.flatten_dense_tensors
_is_on_cpu = operator.attrgetter("is_cpu")


def all_finite(leaves: Iterable[Any]) -> bool | torch.Tensor:
    """Whether all floating and complex tensors are free of NaN and infinities.

    A Python value for concrete tensors on the CPU, where reading it costs nothing; else a 0-d bool tensor on
    their device.
    """
    found, traced = [*leaves], is_traced()
    if any_sharded(found):
        return _all_finite_shards(found)
    if not traced and _has_finite_norm(found):
        return True
    tensors = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
    inexact = [_real(leaf) for leaf in tensors if leaf.numel() and _is_inexact(leaf)]
    if not inexact:
        return True
    if traced:
        return torch.stack([leaf.isfinite().all() for leaf in inexact]).all()
    if all([leaf.is_cpu for leaf in inexact]):  # noqa: C419 - faster
        return all(bool(leaf.isfinite().all()) for leaf in inexact)
    # The maximum norm is NaN or infinite exactly when an element is; a sum could overflow by itself.
    return torch.stack([norm.float() for norm in torch._foreach_norm(inexact, ord=torch.inf)]).isfinite().all()


def _all_finite_shards(leaves: list[Any]) -> bool | torch.Tensor:
    """The same for leaves of which some are sharded: what one process finds, all of them know."""
    device = next(leaf for leaf in leaves if is_sharded(leaf)).device
    mine = torch.as_tensor(all_finite([local(leaf) for leaf in leaves]), dtype=torch.uint8, device=device)
    everybody = over_ranks(mesh_of(leaves), mine.view(1)).bool().all()
    return bool(everybody) if device.type == "cpu" else everybody


def are_found_finite(loss: torch.Tensor, grads: list[torch.Tensor]) -> bool:
    """Whether these are tensors on the CPU without NaN and infinities: in one kernel, without a copy.

    No says nothing: other kinds of tensors are not looked at. Not for traced regions. The kernel is that of torch's
    loss scaling: it writes each element of ``grads`` to where it was, times one. So no value changes, but they must
    not be anybody else's who watches their versions.
    """
    try:
        if not loss.is_cpu or not all(map(_is_on_cpu, grads)) or any_sharded(grads):
            return False  # to read the answer would be to wait
        found = _zeros.pop() if _zeros else torch.zeros(1, device="cpu")
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, _ONE)
        if found.item() != 0.0:
            return False
        _zeros.append(found)  # as it was
        return math.isfinite(loss.item())
    except (AttributeError, RuntimeError, TypeError):
        return False  # Python scalars, and tensors that overlap themselves, are complex, sparse or of 8 bits


def _has_finite_norm(leaves: list[Any]) -> bool:
    """Whether these are tensors on the CPU of finite Euclidean norm: quick, and yes only if all elements are finite.

    No says nothing: the norm may overflow. Not for traced regions.
    """
    try:
        if not leaves[0].is_cpu:
            return False  # to read it would be to wait; of several devices no copy is made either
        # One kernel over one copy of all small tensors; the copy of large ones would cost more than kernels for each.
        if sum(map(torch.Tensor.numel, leaves)) <= _COPIED:
            return math.isfinite(_square(leaves))
        large = [leaf for leaf in leaves if leaf.numel() > _SMALL]
        total = _square([leaf for leaf in leaves if leaf.numel() <= _SMALL])
        return math.isfinite(total) and all(math.isfinite(norm.item()) for norm in torch._foreach_norm(large))
    except (AttributeError, IndexError, RuntimeError, TypeError):
        return False  # Python scalars, booleans, complex numbers, and types of 8 bits have no such kernels


def _square(tensors: list[torch.Tensor]) -> float:
    if not tensors:
        return 0.0
    flat = _flatten(tensors)
    return torch.dot(flat, flat).item()


def _is_inexact(leaf: torch.Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _real(leaf: torch.Tensor) -> torch.Tensor:
    if leaf.is_complex():
        return torch.view_as_real(leaf.resolve_conj())
    # The norm has no kernels for types of 8 bits; they convert to float32 exactly.
    return leaf.float() if leaf.element_size() == 1 else leaf
