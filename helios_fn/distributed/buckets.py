"""Lists of tensors as few flat ones: what is sent together travels as one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

BUCKET_BYTES = 64 << 20
"""A bucket is closed when it has reached this size, so that the flat copies of a large model are not all alive."""


class Bucket(NamedTuple):
    """Leaves of one dtype on one device: their places in the list, their shapes, and the elements of all."""

    places: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    numel: int
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """The size of the flat tensor."""
        return self.numel * self.dtype.itemsize

    def flat(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The leaves of this bucket as one vector, in new memory."""
        return torch.cat([leaves[place].reshape(-1) for place in self.places])

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of `flat`: views of the vector in the shapes of the leaves."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def buckets(leaves: Sequence[torch.Tensor], *, limit: int = BUCKET_BYTES) -> list[Bucket]:
    """The buckets of a list of tensors: by dtype and device, the widest dtypes first, no larger than they must be.

    They depend on shapes, dtypes and devices alone, so all processes find the same ones.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for place, leaf in enumerate(leaves):
        kinds.setdefault((leaf.dtype, leaf.device), []).append(place)
    # Widest first: in a message made of all of them every part begins at a multiple of its item size.
    order = sorted(kinds, key=lambda kind: (-kind[0].itemsize, str(kind[0]), str(kind[1])))
    return [bucket for kind in order for bucket in _closed(kind, kinds[kind], leaves, limit)]


def spread(found: Sequence[Bucket], flats: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The list of tensors again, as views of the flat ones."""
    leaves: dict[int, torch.Tensor] = {}
    for bucket, flat in zip(found, flats, strict=True):
        leaves.update(zip(bucket.places, bucket.views(flat), strict=True))
    return [leaves[place] for place in range(len(leaves))]


def _closed(
    kind: tuple[torch.dtype, torch.device], places: list[int], leaves: Sequence[torch.Tensor], limit: int
) -> list[Bucket]:
    found: list[list[int]] = [[]]
    size = 0
    for place in places:
        if size >= limit:
            found.append([])
            size = 0
        found[-1].append(place)
        size += leaves[place].numel() * kind[0].itemsize
    shapes = [tuple(leaves[place].shape for place in group) for group in found]
    return [
        Bucket(tuple(group), shape, sum(each.numel() for each in shape), *kind)
        for group, shape in zip(found, shapes, strict=True)
    ]
