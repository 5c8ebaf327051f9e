"""Terms that lie in one piece of memory: few vectors to add, a message without a copy, and room for the next iteration.

A term of many small tensors costs as many calls to pack, to scale and to unpack as it has tensors; between two passes
through a network, where Python runs with cold caches, these calls cost more than a small model's message. So what is
found out about them is kept (`Packing`), what is added to a sum need not be packed before (`Loose`), and small pieces
of memory are written again in the next iteration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .. import accumulate
from ..signature import Signature
from ..types import Scalar
from .buckets import Bucket, aligned

KEPT_BYTES = 4 << 20
"""Larger pieces of memory are not kept from one iteration to the next: their kernels cost more than their making."""

_MOST_KEPT = 2
_unflatten = torch._C._nn.unflatten_dense_tensors


class Packed(list[list[torch.Tensor]]):
    """A term of one group: a vector for each bucket.

    Attributes:
        packing: how it is packed.
        pieces: the memory, as bytes: one vector for each of ``packing.devices``.
    """

    __slots__ = ("_views", "packing", "pieces")

    def __init__(self, packing: Packing, pieces: Sequence[torch.Tensor]) -> None:
        super().__init__([packing.vectors(pieces)])
        self.packing, self.pieces = packing, pieces
        self._views: list[torch.Tensor] | None = None

    @property
    def views(self) -> list[torch.Tensor]:
        """The leaves, as views of the vectors."""
        if self._views is None:
            self._views = self.packing.leaves(self[0])
        return self._views


class Packing:
    """How lists of tensors of the same forms are packed: those that are not floating point last.

    Args:
        found: the buckets.
        leaves: tensors that are packed by them. Others of the same forms are recognised at little cost.

    Attributes:
        buckets: the same buckets.
        devices: those of the buckets.
        sizes: for each device, the bytes of a term.
        first: the bucket that begins with the first leaf.
    """

    def __init__(self, found: list[Bucket], leaves: Sequence[torch.Tensor]) -> None:
        self.buckets = found
        sizes: dict[torch.device, int] = {}
        self._places: list[tuple[int, int, int]] = []
        for bucket in found:
            start = sizes.get(bucket.device, 0)
            sizes[bucket.device] = start + aligned(bucket.nbytes)
            self._places.append((list(sizes).index(bucket.device), start, start + bucket.nbytes))
        self.devices, self.sizes = list(sizes), list(sizes.values())
        self.first = next(at for at, bucket in enumerate(found) if bucket.places[0] == 0)
        self._count = len(leaves)
        self._floating = sum(len(bucket.places) for bucket in found if bucket.is_floating)
        self._signature = Signature(leaves)
        self._likes = [_likes(bucket) for bucket in found]
        self._on_cpu = all(device.type == "cpu" for device in self.devices)
        self._keeps = self._on_cpu and sum(self.sizes) <= KEPT_BYTES
        self._idle: list[Packed] = []

    def vectors(self, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The vectors of the buckets in a term's memory."""
        rows = zip(self.buckets, self._places, strict=True)
        return [pieces[at][start:stop].view(bucket.dtype) for bucket, (at, start, stop) in rows]

    def room(self) -> Packed:
        """Memory for a term, whatever it holds."""
        try:
            return self._idle.pop()  # one call, which no other thread can interrupt
        except IndexError:
            rows = zip(self.sizes, self.devices, strict=True)
            return Packed(self, [torch.empty(size, dtype=torch.uint8, device=device) for size, device in rows])

    def give_back(self, *terms: object) -> None:
        """Keep the memory of ``terms`` for others. Nobody may look at them any more, nor any kernel that still runs."""
        for term in terms:
            if (
                self._keeps
                and isinstance(term, Packed)
                and term.packing is self
                and len(self._idle) < _MOST_KEPT
                and not any(term is other for other in self._idle)
                and not term.pieces[0].is_inference()
            ):
                self._idle.append(term)

    def leaves(self, vectors: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
        """The list of tensors again, as views of vectors; without those of a vector that is ``None``."""
        found: list[Any] = [None] * self._count
        for bucket, likes, vector in zip(self.buckets, self._likes, vectors, strict=True):
            if vector is None:
                continue
            views = bucket.views(vector) if likes is None else _unflatten(vector, likes)
            for place, view in zip(bucket.places, views, strict=True):
                found[place] = view
        return found

    def copy(self, leaves: list[torch.Tensor], term: Packed) -> None:
        """Write the leaves into the memory of a term."""
        for places in self._lists(self._count):
            torch._foreach_copy_(_at(term.views, places), _at(leaves, places))

    def add(self, leaves: list[torch.Tensor], term: Packed) -> None:
        """Add those leaves that are floating point to a term: the same bits as adding vector to vector."""
        for places in self._lists(self._floating):
            torch._foreach_add_(_at(term.views, places), _at(leaves, places))

    def _lists(self, count: int) -> list[slice | tuple[int, ...]]:
        """Which of the first ``count`` leaves a kernel takes together. On accelerators they must be of one dtype."""
        if self._on_cpu:
            return [slice(count)]
        return [bucket.places for bucket in self.buckets if bucket.places[0] < count]

    def matches(self, leaves: Sequence[torch.Tensor]) -> bool:
        """Whether these are just like those that the packing was made for."""
        return self._signature.matches(leaves)

    def check(self, leaves: Sequence[torch.Tensor]) -> None:
        """Check that leaves have the right shapes: to broadcast would be to make up a sum.

        Raises:
            ValueError: one has not.
        """
        for bucket in self.buckets:
            for place, shape in zip(bucket.places, bucket.shapes, strict=True):
                if leaves[place].shape != shape:
                    raise ValueError(
                        "the results of an iteration's micro-batches must have equal shapes: one has "
                        f"{tuple(shape)} where another has {tuple(leaves[place].shape)}"
                    )


class Loose:
    """A weighted term that has no memory of its own yet.

    Args:
        packing: how it will be packed.
        leaves: what the term is ``weight`` times of. They have the right shapes.
        weight: that of the floating point leaves.
        of_others: the weight of the others, 1 or 0.
        matching: whether the leaves are just like those that the packing was made for.
    """

    __slots__ = ("_leaves", "_of_others", "_packing", "_plain", "_weight", "matching")

    def __init__(
        self,
        packing: Packing,
        leaves: list[torch.Tensor],
        weight: Scalar | torch.Tensor,
        of_others: int,
        *,
        matching: bool,
    ) -> None:
        self._packing, self._leaves, self.matching = packing, leaves, matching
        self._weight, self._of_others = weight, of_others
        self._plain = matching and not isinstance(weight, torch.Tensor) and weight == 1 and not of_others

    def packed(self) -> Packed:
        """The term in memory of its own."""
        packing = self._packing
        term = packing.room()
        packing.copy(self._leaves, term)
        for bucket, vector in zip(packing.buckets, term[0], strict=True):
            accumulate.scale_(vector, self._weight if bucket.is_floating else self._of_others)
        return term

    def add_to(self, total: Packed) -> None:
        """Add the term to a sum: the bits are those of adding what `packed` returns."""
        if self._plain:
            self._packing.add(self._leaves, total)
        else:
            term = self.packed()
            accumulate.add_(total[0], term[0])
            self._packing.give_back(term)


def _at(items: list[torch.Tensor], places: slice | tuple[int, ...]) -> list[torch.Tensor]:
    return items[places] if isinstance(places, slice) else [items[place] for place in places]


def _likes(bucket: Bucket) -> list[torch.Tensor] | None:
    """What tells torch the shapes of a vector's views, in no memory; ``None`` where they do not tell all."""
    if any(order is not None for order in bucket.orders) or 0 in bucket.sizes:
        return None
    one = torch.empty((), dtype=bucket.dtype, device=bucket.device)
    return [one.expand(shape) for shape in bucket.shapes]
