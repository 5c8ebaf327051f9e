"""Gradient clipping."""

from __future__ import annotations

import functools
import math

import torch
from torch.nn.utils import get_total_norm

from .. import tree
from ..dtensors import any_sharded, around, is_replicated, local, mesh_of, over_ranks
from ..tracing import by_formula
from ..types import Tree
from .base import Transform
from .checks import positive
from .transforms.stateless import Leaves, stateless


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most ``max_norm``.

    The factor is ``min(max_norm / (norm + 1e-6), 1)``, where ``norm`` is the norm of the vector of the
    tensors' norms, in the dtype of the gradients. These are the bits of ``torch.nn.utils.clip_grad_norm_`` over
    the same tensors in the same (canonical) order. Nothing is hidden: if a gradient is not finite, neither is
    the result. Gradients on the CPU whose norm is clearly below ``max_norm`` are returned themselves.

    Of sharded gradients the norm is that of all shards, accumulated in float64: it agrees to rounding.

    Inside `every` the accumulated mean is clipped, before it each call's gradients are.

    From [Pascanu, Mikolov and Bengio](https://arxiv.org/abs/1211.5063).

    Raises:
        ValueError: ``max_norm`` is not above 0.
    """
    max_norm = positive("max_norm", max_norm)
    function = functools.partial(_by_global_norm, max_norm=max_norm)
    return stateless("clip_by_global_norm", {"max_norm": max_norm}, function)


def clip_by_value(limit: float) -> Transform:
    """Clamp each element of the gradients to ``[-limit, limit]``; NaN stays NaN.

    These are the bits of ``torch.nn.utils.clip_grad_value_``.

    Raises:
        ValueError: ``limit`` is not above 0.

    Example:
        >>> transform = hf.optim.clip_by_value(1.0)
        >>> grads, state = transform.update({"w": torch.tensor([-3.0, 0.5])}, transform.init({}), {})
        >>> grads["w"].tolist()
        [-1.0, 0.5]
    """
    limit = positive("limit", limit)
    return stateless("clip_by_value", {"limit": limit}, functools.partial(_by_value, limit=limit))


def global_norm(tensors: Tree) -> torch.Tensor:
    """The Euclidean norm of all tensors of a tree together, 0-d: that of the vector of their norms.

    These are the bits of ``torch.nn.utils.get_total_norm`` over the leaves in canonical order. Of no tensors it is 0.
    Sharded tensors count as a whole: then all processes must call this.

    Example:
        >>> hf.optim.global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        tensor(5.)
    """
    leaves = tree.tensors(tensors)
    if not leaves:
        return torch.zeros(())
    if any_sharded(leaves):
        return _norm_over_ranks(leaves, [local(leaf) for leaf in leaves])
    return _joint([torch.linalg.vector_norm(leaf) for leaf in leaves]) if by_formula(leaves) else get_total_norm(leaves)


def clip_gradients(grads: Tree, max_norm: float) -> tuple[Tree, torch.Tensor]:
    """The gradients scaled down to a joint norm of at most ``max_norm``, and the norm that they had.

        grads, norm = optim.clip_gradients(mean.grads, 1.0)

    For a step of one's own; in an optimiser write `clip_by_global_norm`, whose bits these are. As in
    ``torch.nn.utils.clip_grad_norm_``, a norm that is not finite makes all gradients so.

    Raises:
        ValueError: ``max_norm`` is not above 0.

    Example:
        >>> grads, norm = hf.optim.clip_gradients({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 10.0)
        >>> norm.item(), grads["a"].item()
        (5.0, 3.0)
    """
    max_norm = positive("max_norm", max_norm)
    leaves, treespec = tree.flatten(grads)
    norm = global_norm(leaves)
    return tree.unflatten(treespec, _times(leaves, _factor(norm, max_norm))), norm


def _by_global_norm(leaves: Leaves, *, max_norm: float) -> Leaves:
    if any_sharded(leaves):
        parts = [local(leaf) for leaf in leaves]
        return _times(leaves, _factor(_norm_over_ranks(leaves, parts), max_norm))
    if by_formula(leaves):
        norms = [torch.linalg.vector_norm(leaf) for leaf in leaves]
        return _scaled(leaves, _factor(_joint(norms), max_norm))
    if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
        return _scaled(leaves, _factor(get_total_norm(leaves), max_norm))
    norms = list(torch._foreach_norm(leaves))
    if leaves[0].is_cpu and _clearly_below(norms, max_norm):
        return leaves
    # Elsewhere clamped on the device: no test of the norm on the host.
    return list(torch._foreach_mul(leaves, _factor(_joint(norms), max_norm)))


def _norm_over_ranks(leaves: Leaves, parts: Leaves) -> torch.Tensor:
    """The joint norm of sharded leaves from the parts that the processes hold, the same bits on each of them."""
    device = parts[0].device
    norms = [torch.linalg.vector_norm(part).to(device, torch.float64) for part in parts]
    squares = torch.stack(norms).square()
    replicated = torch.tensor([is_replicated(leaf) for leaf in leaves], device=device)
    everywhere, here = squares[replicated].sum(), squares[~replicated].sum()
    return (everywhere + over_ranks(mesh_of(leaves), here.view(1)).sum()).sqrt()


def _joint(norms: Leaves) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.stack(norms))


def _factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def _clearly_below(norms: Leaves, max_norm: float) -> bool:
    # The margin covers the rounding of bfloat16, so that the factor would have been 1.
    return 1.02 * (math.hypot(*(norm.item() for norm in norms)) + 1e-6) < max_norm


def _scaled(leaves: Leaves, factor: torch.Tensor) -> Leaves:
    # Of several dtypes the factor has the widest, to which a 0-d leaf would be promoted.
    return [(leaf * factor.to(leaf.device)).to(leaf.dtype) for leaf in leaves]


def _times(leaves: Leaves, factor: torch.Tensor) -> Leaves:
    """The same where leaves may be sharded."""
    scaled = _scaled([local(leaf) for leaf in leaves], factor)
    return [around(part, leaf) for part, leaf in zip(scaled, leaves, strict=True)]


def _by_value(leaves: Leaves, *, limit: float) -> Leaves:
    if any_sharded(leaves):
        clamped = _by_value([local(leaf) for leaf in leaves], limit=limit)
        return [around(part, leaf) for part, leaf in zip(clamped, leaves, strict=True)]
    if by_formula(leaves):
        return [leaf.clamp(-limit, limit) for leaf in leaves]
    clamped = list(torch._foreach_clamp_min(leaves, -limit))
    torch._foreach_clamp_max_(clamped, limit)
    return clamped
