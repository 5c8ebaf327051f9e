"""Terms that lie in one piece of memory: few vectors to add, a message without a copy, and room for the next iteration.

A term of many small tensors costs as many calls to pack, to scale and to unpack as it has tensors; between two passes
through a network, where Python runs with cold caches, these calls cost more than a small model's message. So what is
found out about them is kept (`Packing`), what is added to a sum need not be packed before (`Loose`), and small pieces
of memory are written again in the next iteration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        self._views: list[list[torch.Tensor]] | None = None

    @property
    def views(self) -> list[list[torch.Tensor]]:
        """The leaves of each bucket, as views of its vector."""
        if self._views is None:
            rows = zip(self.packing.buckets, self[0], strict=True)
            self._views = [bucket.views(vector) for bucket, vector in rows]
        return self._views


class Packing:
    """How lists of tensors of the same forms are packed, in the order of their buckets.

    Args:
        found: the buckets.
        leaves: tensors that are packed by them. Others of the same forms are recognised at little cost.

    Attributes:
        buckets: the same buckets.
        devices: those of the buckets.
        sizes: for each device, the bytes of a term.
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
        self._count = len(leaves)
        self._signature = Signature(leaves)
        self._parts = [_range(bucket.places) for bucket in found]
        self._likes = [_likes(bucket) for bucket in found]
        self._idle: list[Packed] = []
        self._keeps = all(device.type == "cpu" for device in self.devices) and sum(self.sizes) <= KEPT_BYTES

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

    def give_back(self, terms: Iterable[object]) -> None:
        """Keep the memory of ``terms`` for others. Nobody may look at them any more, nor any kernel that still runs."""
        for term in terms:
            if (
                self._keeps
                and isinstance(term, Packed)
                and term.packing is self
                and len(self._idle) < _MOST_KEPT
                and not term.pieces[0].is_inference()
            ):
                self._idle.append(term)

    def leaves(self, vectors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The list of tensors again, as views of vectors."""
        found: list[torch.Tensor] = [None] * self._count  # type: ignore[list-item]
        for bucket, part, likes, vector in zip(self.buckets, self._parts, self._likes, vectors, strict=True):
            views = bucket.views(vector) if likes is None else _unflatten(vector, likes)
            if isinstance(part, slice):
                found[part] = views
            else:
                for place, view in zip(part, views, strict=True):
                    found[place] = view
        return found

    def parts(self, leaves: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """The leaves of each bucket."""
        return [leaves[part] if isinstance(part, slice) else [leaves[at] for at in part] for part in self._parts]

    def matches(self, leaves: Sequence[torch.Tensor]) -> bool:
        """Whether these are just like those that the packing was made for."""
        return self._signature.matches(leaves)

    def shapes(self) -> list[torch.Size]:
        """Those of the leaves."""
        found = {place: shape for each in self.buckets for place, shape in zip(each.places, each.shapes, strict=True)}
        return [found[place] for place in range(self._count)]


class Loose:
    """A weighted term that has no memory of its own yet.

    Args:
        packing: how it will be packed.
        leaves: what the term is ``weight`` times of.
        weight: that of the floating point leaves.
        of_others: the weight of the others, 1 or 0.

    Raises:
        ValueError: a leaf is of another shape than its place.
    """

    __slots__ = ("_leaves", "_matching", "_of_others", "_packing", "_weight")

    def __init__(
        self, packing: Packing, leaves: list[torch.Tensor], weight: Scalar | torch.Tensor, of_others: int
    ) -> None:
        self._matching = packing.matches(leaves)
        if not self._matching:
            # To broadcast would be to make up a sum.
            shapes = packing.shapes()
            for leaf, shape in zip(leaves, shapes, strict=True):
                if leaf.shape != shape:
                    raise ValueError(
                        f"the micro-batches of an iteration must have results of equal shapes: one has {tuple(shape)} "
                        f"where another has {tuple(leaf.shape)}"
                    )
            leaves = [leaf.detach() for leaf in leaves]
        self._packing, self._leaves = packing, leaves
        self._weight, self._of_others = weight, of_others

    def packed(self) -> Packed:
        """The term in memory of its own."""
        term = self._packing.room()
        for bucket, views, vector, part in zip(
            self._packing.buckets, term.views, term[0], self._packing.parts(self._leaves), strict=True
        ):
            torch._foreach_copy_(views, part)
            accumulate.scale_(vector, self._weight if bucket.is_floating else self._of_others)
        return term

    def add_to(self, total: Packed) -> None:
        """Add the term to a sum: the bits are those of adding what `packed` returns."""
        if self._matching and not isinstance(self._weight, torch.Tensor) and self._weight == 1 and not self._of_others:
            for bucket, views, part in zip(
                self._packing.buckets, total.views, self._packing.parts(self._leaves), strict=True
            ):
                if bucket.is_floating:
                    torch._foreach_add_(views, part)
        else:
            term = self.packed()
            accumulate.add_(total[0], term[0])
            self._packing.give_back([term])


def _range(places: tuple[int, ...]) -> slice | tuple[int, ...]:
    return slice(places[0], places[-1] + 1) if places == tuple(range(places[0], places[-1] + 1)) else places


def _likes(bucket: Bucket) -> list[torch.Tensor] | None:
    """What tells torch the shapes of a vector's views, in no memory; ``None`` where that is not all there is to know."""
    if any(order is not None for order in bucket.orders) or 0 in bucket.sizes:
        return None
    one = torch.empty((), dtype=bucket.dtype, device=bucket.device)
    return [one.expand(shape) for shape in bucket.shapes]
