"""All-gathering sharded tensors, and reducing and scattering their derivatives, in one exchange each.

The sum over processes is not a reduce-scatter of the backend, whose order of summation is its own affair: the parts
are exchanged, which moves as many bytes, and each process sums its own in the order of the binary tree over ranks. So
the bits depend on the number of processes alone, and where each has one micro-batch of an iteration they are those of
``reduction="tree"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .. import accumulate
from ..dtensors import Placed, local, placed

_ALIGNED = 16  # bytes: as wide as the widest elements


def is_placement(placement: Any, leaf: torch.Tensor) -> bool:
    """Whether a tensor can be placed so: replicated, or cut along one of its dimensions as ``torch.chunk`` does."""
    from torch.distributed.tensor import Replicate, Shard

    # Subclasses of Shard cut otherwise.
    return type(placement) is Replicate or (type(placement) is Shard and -leaf.dim() <= placement.dim < leaf.dim())


def problem(leaf: Any) -> str | None:
    """Why a DTensor on a mesh of one dimension cannot be gathered, if so."""
    (placement,) = leaf.placements
    if not is_placement(placement, leaf):
        return f"is placed as {placement}: sharded params are placed by Shard(dim) or Replicate()"
    if leaf.dtype is torch.float16 and leaf.requires_grad:
        return "is float16, in which weighted sums overflow: use bfloat16 or float32"
    found, expected = tuple(local(leaf).shape), _Part.of(placed(leaf)).shapes[leaf.device_mesh.get_local_rank()]
    return None if found == expected else f"has a part of shape {found} here instead of {expected}"


class _Part(NamedTuple):
    """How a tensor is cut into one piece for each process: along ``dim``, or not at all where it is ``None``."""

    where: Placed
    dim: int | None
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, where: Placed) -> _Part:
        (placement,), world = where.placements, where.mesh.size()
        if placement.is_replicate():
            return cls(where, None, (tuple(where.shape),) * world)
        dim = placement.dim % len(where.shape)
        size = where.shape[dim]
        rows = -(-size // world)
        pieces = (min(rows, max(size - rank * rows, 0)) for rank in range(world))
        return cls(where, dim, tuple((*where.shape[:dim], piece, *where.shape[dim + 1 :]) for piece in pieces))

    @property
    def most(self) -> int:
        """The elements of the largest piece; of a tensor that is not cut, of an even part of it."""
        if self.dim is None:
            return -(-math.prod(self.where.shape) // len(self.shapes))
        return max(map(math.prod, self.shapes))

    def pieces(self, full: torch.Tensor) -> list[torch.Tensor]:
        """``full`` cut up, each piece flat; those of a tensor that is not cut are even parts of its elements."""
        if self.dim is None:
            return [full.reshape(-1)[start : start + self.most] for start in self._starts()]
        sizes = [shape[self.dim] for shape in self.shapes]
        return [piece.reshape(-1) for piece in full.split(sizes, self.dim)]

    def _starts(self) -> list[int]:
        return [rank * self.most for rank in range(len(self.shapes))]


class _Slots:
    """Places of tensors in a row of bytes that is exchanged: ``counts`` elements each, of ``dtypes``."""

    def __init__(self, counts: Sequence[int], dtypes: Sequence[torch.dtype]) -> None:
        self._dtypes, self._starts, stop = list(dtypes), [], 0
        for count, dtype in zip(counts, dtypes, strict=True):
            self._starts.append(stop)
            stop += -(-count * dtype.itemsize // _ALIGNED) * _ALIGNED
        self.size = max(stop, _ALIGNED)  # rows of nothing have no places that could be viewed

    def view(self, row: torch.Tensor, at: int, count: int) -> torch.Tensor:
        """The first ``count`` elements of tensor ``at`` in a row."""
        start, dtype = self._starts[at], self._dtypes[at]
        return row[start : start + count * dtype.itemsize].view(dtype)

    def rows(self, count: int, device: torch.device) -> torch.Tensor:
        """New rows."""
        return torch.empty((count, self.size), dtype=torch.uint8, device=device)


def own_piece(where: Placed, full: torch.Tensor) -> torch.Tensor:
    """This process's piece of a whole tensor that will lie so, in memory of its own."""
    part = _Part.of(where)
    if part.dim is None:
        return full.clone(memory_format=torch.contiguous_format)
    rank, sizes = where.mesh.get_local_rank(), [shape[part.dim] for shape in part.shapes]
    return full.split(sizes, part.dim)[rank].clone(memory_format=torch.contiguous_format)


def gather(mesh: Any, parts: Sequence[_Part], locals_: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The whole tensors from everybody's pieces."""
    cut = [at for at, part in enumerate(parts) if part.dim is not None]
    full = [leaf.view_as(leaf) for leaf in locals_]
    if not cut:
        return full
    slots = _Slots([parts[at].most for at in cut], [locals_[at].dtype for at in cut])
    mine = slots.rows(1, locals_[0].device)
    for slot, at in enumerate(cut):
        slots.view(mine[0], slot, locals_[at].numel()).copy_(locals_[at].reshape(-1))
    rows = _all_gathered(mesh, mine, slots)
    for slot, at in enumerate(cut):
        shapes = parts[at].shapes
        pieces = [slots.view(row, slot, math.prod(shape)).view(shape) for row, shape in zip(rows, shapes, strict=True)]
        full[at] = torch.cat(pieces, parts[at].dim)  # type: ignore[arg-type]  # those without are not in cut
    return full


def reduce(mesh: Any, parts: Sequence[_Part], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The pieces of this process of the sums over all processes of whole tensors, as wide as ``leaves``."""
    rank, world = mesh.get_local_rank(), mesh.size()
    slots = _Slots([part.most for part in parts], [leaf.dtype for leaf in leaves])
    sent = slots.rows(world, leaves[0].device)
    for at, (part, leaf) in enumerate(zip(parts, leaves, strict=True)):
        for row, piece in zip(sent, part.pieces(leaf), strict=True):
            slots.view(row, at, piece.numel()).copy_(piece)
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent, group=mesh.get_group())
    del sent
    found = []
    for at, part in enumerate(parts):
        count = part.most if part.dim is None else math.prod(part.shapes[rank])
        found.append(_tree_sum([slots.view(row, at, count) for row in received]))
    _complete(mesh, parts, found)
    return [leaf.reshape(part.shapes[rank]) for part, leaf in zip(parts, found, strict=True)]


def _complete(mesh: Any, parts: Sequence[_Part], sums: list[torch.Tensor]) -> None:
    """Put together the sums for tensors that are not cut, of which each process has made an even part."""
    whole = [at for at, part in enumerate(parts) if part.dim is None]
    if not whole:
        return
    slots = _Slots([parts[at].most for at in whole], [sums[at].dtype for at in whole])
    mine = slots.rows(1, sums[0].device)
    for slot, at in enumerate(whole):
        slots.view(mine[0], slot, sums[at].numel()).copy_(sums[at])
    rows = _all_gathered(mesh, mine, slots)
    for slot, at in enumerate(whole):
        pieces = [slots.view(row, slot, parts[at].most) for row in rows]
        sums[at] = torch.cat(pieces)[: math.prod(parts[at].where.shape)]


def _all_gathered(mesh: Any, mine: torch.Tensor, slots: _Slots) -> torch.Tensor:
    rows = slots.rows(mesh.size(), mine.device)
    torch.distributed.all_gather_single(rows, mine, group=mesh.get_group())
    return rows


def _tree_sum(terms: list[torch.Tensor]) -> torch.Tensor:
    while len(terms) > 1:
        pairs = [terms[at] + terms[at + 1] for at in range(0, len(terms) - 1, 2)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0].clone()  # not a view of all that was received


class Gather(torch.autograd.Function):
    """``Gather.apply(derivation, *leaves) -> (*full, anchor)``; the anchor is a zero that depends on all leaves."""

    @staticmethod
    def forward(ctx: Any, derivation: Any, *leaves: Any) -> tuple[torch.Tensor, ...]:
        """The whole tensors."""
        ctx.derivation, ctx.mesh = derivation, leaves[0].device_mesh
        ctx.parts = [_Part.of(placed(leaf)) for leaf in leaves]
        ctx.dtypes = [leaf.dtype for leaf in leaves]
        own = [local(leaf) for leaf in leaves]
        return (*gather(ctx.mesh, ctx.parts, own), torch.zeros((), device=own[0].device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The derivatives times the weight, summed over processes and as sharded as the leaves."""
        weight = 1 if ctx.derivation is None else ctx.derivation.weight
        wanted = [at for at, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        parts = [ctx.parts[at] for at in wanted]
        terms = [accumulate.scale([grads[at]], weight)[0] for at in wanted]
        found: list[Any] = [None] * len(ctx.parts)
        for at, part, total in zip(wanted, parts, reduce(ctx.mesh, parts, terms), strict=True):
            found[at] = part.where.around(total.to(ctx.dtypes[at]))
        return (None, *found)
