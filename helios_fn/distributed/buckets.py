"""Lists of tensors as few flat ones: what is sent together travels as one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

BUCKET_BYTES = 64 << 20
"""A bucket is closed when it has reached this size, so that the flat copies of a large model are not all alive."""


class Bucket(NamedTuple):
    """Leaves of one dtype on one device: their places in the list, their forms, and their elements, each and all."""

    places: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    orders: tuple[tuple[int, ...] | None, ...]
    sizes: tuple[int, ...]
    numel: int
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """The size of the flat tensor."""
        return self.numel * self.dtype.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating point or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def flat(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The leaves of this bucket as one vector: in new memory, unless one leaf is all there is."""
        lines = self._lines(leaves)
        return lines[0] if len(lines) == 1 else torch.cat(lines)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of `flat`: views of the vector in the shapes, and the order in memory, of the leaves."""
        parts = flat.split(self.sizes)
        return [
            part if len(shape) == 1 else part.view(shape) if order is None else _in_order(part, shape, order)
            for part, shape, order in zip(parts, self.shapes, self.orders, strict=True)
        ]

    def _lines(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [
            leaves[place].reshape(-1) if order is None else leaves[place].permute(order).reshape(-1)
            for place, order in zip(self.places, self.orders, strict=True)
        ]


def buckets(
    leaves: Sequence[torch.Tensor],
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    limit: int = BUCKET_BYTES,
    in_memory_order: bool = False,
) -> list[Bucket]:
    """The buckets of a list of tensors: by dtype and device, the widest dtypes first, no larger than they must be.

    They depend on shapes, dtypes and devices alone, so all processes find the same ones.

    Args:
        leaves: the tensors, or others of the same forms.
        dtypes: those of the buckets; by default those of the leaves.
        limit: see `BUCKET_BYTES`.
        in_memory_order: take the elements of a tensor in the order in which they lie in memory, for tensors whose
            strides are known to be the same on all processes. By default in row-major order.
    """
    if dtypes is None:
        dtypes = [leaf.dtype for leaf in leaves]
    forms = tuple(
        [
            (leaf.shape, leaf.stride() if in_memory_order else None, dtype, leaf.device)
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        ]
    )
    # Every iteration of a run asks the same question, and finding the answer costs more than a small model's message.
    found = _ANSWERS.get((forms, limit))
    if found is None:
        if len(_ANSWERS) >= _MOST_ANSWERS:
            _ANSWERS.clear()
        found = _ANSWERS[forms, limit] = _buckets(leaves, dtypes, limit, in_memory_order)
    return found


_ANSWERS: dict[Any, list[Bucket]] = {}
_MOST_ANSWERS = 64


def _buckets(
    leaves: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], limit: int, in_memory_order: bool
) -> list[Bucket]:
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True)):
        kinds.setdefault((dtype, leaf.device), []).append(place)
    # Widest first: in a message made of all of them every part begins at a multiple of its item size.
    order = sorted(kinds, key=lambda kind: (-kind[0].itemsize, str(kind[0]), str(kind[1])))
    return [bucket for kind in order for bucket in _closed(kind, kinds[kind], leaves, limit, in_memory_order)]


def as_bytes(flats: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The vectors as one of bytes, each padded to a multiple of 16."""
    if not flats:
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.cat([_padded(flat) for flat in flats])


def aligned(nbytes: int) -> int:
    """The next multiple of 16, the size of the widest dtype."""
    return -(-nbytes // 16) * 16


def spread(found: Sequence[Bucket], flats: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The list of tensors again, as views of the flat ones."""
    leaves: dict[int, torch.Tensor] = {}
    for bucket, flat in zip(found, flats, strict=True):
        leaves.update(zip(bucket.places, bucket.views(flat), strict=True))
    return [leaves[place] for place in range(len(leaves))]


def _closed(
    kind: tuple[torch.dtype, torch.device],
    places: list[int],
    leaves: Sequence[torch.Tensor],
    limit: int,
    in_memory_order: bool,
) -> list[Bucket]:
    found: list[list[int]] = [[]]
    size = 0
    for place in places:
        if size >= limit:
            found.append([])
            size = 0
        found[-1].append(place)
        size += leaves[place].numel() * kind[0].itemsize
    return [_bucket(tuple(group), [leaves[place] for place in group], kind, in_memory_order) for group in found]


def _bucket(
    places: tuple[int, ...], leaves: list[torch.Tensor], kind: tuple[torch.dtype, torch.device], in_memory_order: bool
) -> Bucket:
    shapes = tuple(leaf.shape for leaf in leaves)
    orders = tuple(_order(leaf) if in_memory_order else None for leaf in leaves)
    sizes = tuple(leaf.numel() for leaf in leaves)
    return Bucket(places, shapes, orders, sizes, sum(sizes), *kind)


def _order(leaf: torch.Tensor) -> tuple[int, ...] | None:
    """The dimensions in their order in memory; ``None`` for the usual one, and where elements share their places."""
    if leaf.is_contiguous():
        return None
    order = tuple(sorted(range(leaf.dim()), key=leaf.stride, reverse=True))
    return order if leaf.permute(order).is_contiguous() else None


def _in_order(part: torch.Tensor, shape: torch.Size, order: tuple[int, ...]) -> torch.Tensor:
    back = sorted(range(len(order)), key=order.__getitem__)
    return part.view([shape[at] for at in order]).permute(back)


def _padded(flat: torch.Tensor) -> torch.Tensor:
    data = flat.view(torch.uint8)
    missing = aligned(data.numel()) - data.numel()
    return torch.nn.functional.pad(data, (0, missing)) if missing else data
