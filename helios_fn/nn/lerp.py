"""One list of tensors moved towards another, and what of it can be done in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..accumulate import widen
from ..tracing import by_formula, stored
from ..types import Scalar


def toward(old: Sequence[Any], new: Sequence[Any], weight: Scalar | torch.Tensor, *, donate: bool) -> list[Any]:
    """``old + weight * (new - old)`` by ``torch.lerp``; leaves that are no floating tensors are copied from ``new``.

    A weight of 1 gives exactly ``new``, as does a tensor of value 1, and a tensor of value 0 exactly ``old``. With
    ``donate`` the result may be written into the memory of ``old``. Where values are unknown ``weight`` may be a 0-d
    tensor, and all is made of out-of-place tensor operations.
    """
    if by_formula((*old, *new)):
        found = [_between(start, end, weight) for start, end in zip(old, new, strict=True)]
        return stored(found, old, donate=donate)
    with torch.no_grad():
        return _moved(old, new, float(weight), donate)


def copies(new: Sequence[Any]) -> list[Any]:
    """Copies of the leaves that share no memory with them, half precisions in float32."""
    return [_copy(leaf) for leaf in new]


def _between(start: Any, end: Any, weight: Scalar | torch.Tensor) -> Any:
    if not _is_moved(end):
        return _copy(end)
    end = widen(end)
    if not isinstance(weight, torch.Tensor):
        return end.clone() if weight == 1 else torch.lerp(start, end, weight)
    weight = weight.to(start.device)
    between = torch.lerp(start, end, weight.to(start.dtype))
    # By its formula torch.lerp loses the sign of a zero, and makes NaN of infinities.
    return torch.where(weight == 1, end, torch.where(weight == 0, start, between))


def _moved(old: Sequence[Any], new: Sequence[Any], weight: float, donate: bool) -> list[Any]:
    moving = [index for index, leaf in enumerate(new) if _is_moved(leaf)]
    starts, ends = [old[index] for index in moving], [widen(new[index]) for index in moving]
    if donate and _apart(starts, ends):
        between = starts
        if moving:
            torch._foreach_copy_(starts, ends) if weight == 1 else torch._foreach_lerp_(starts, ends, weight)
    elif weight == 1:
        between = [end.clone() for end in ends]
    else:
        between = list(torch._foreach_lerp(starts, ends, weight)) if moving else []
    if len(moving) == len(new):
        return between
    averaged = iter(between)
    return [next(averaged) if _is_moved(leaf) else _copy(leaf) for leaf in new]


def _apart(starts: list[torch.Tensor], ends: list[torch.Tensor]) -> bool:
    """Whether the first can be overwritten: no elements of theirs share memory, and none with the second."""
    places = [leaf.data_ptr() for leaf in (*starts, *ends)]
    return len(set(places)) == len(places) and not any(torch._debug_has_internal_overlap(leaf) for leaf in starts)


def _copy(leaf: Any) -> Any:
    return widen(leaf.detach()).clone() if isinstance(leaf, torch.Tensor) else leaf


def _is_moved(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
