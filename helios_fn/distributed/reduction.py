"""Sums of the terms 0, 1, ..., S - 1 in a fixed order, whoever holds which terms.

A term is a list of groups of tensors; kernels on lists are fast where a group has one device and dtype.
The tree order is one binary tree over the indices: the node of size
2**k that starts at a multiple a of 2**k is the sum of the nodes at a and at a + 2**(k-1), or its left
child alone where all terms of the right one are beyond S. A process holds a contiguous slice of the
indices; it hands over the sums of the largest nodes that lie within the slice (`blocks`), and
`combine` goes on from these. Since floating point addition is commutative, the sum is the same bits
for every way to cut 0..S-1 into slices. The fold order, ((t0 + t1) + t2) + ..., is that of an ordinary
loop; cut into slices, each of them is folded first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch

from ..accumulate import add_
from ..types import ReductionName
from .rooms import Loose, Packed

Term: TypeAlias = list[list[torch.Tensor]]


class Block(NamedTuple):
    """The sum of the terms ``start`` to ``start + size - 1``."""

    start: int
    size: int
    term: Term


class TreeSum:
    """Sums consecutive terms from index ``start`` on in tree order, with log2 of their number in memory.

    It takes over the terms pushed into it, and adds to them in place.
    """

    def __init__(self, start: int = 0) -> None:
        self._next = start
        self._blocks: list[Block] = []

    def push(self, term: Term | Loose, size: int = 1) -> None:
        """Add the next term, or the sum of the next ``size`` terms that form a node of the tree."""
        start, self._next = self._next, self._next + size
        # Like a carry in a binary counter. Equal sizes are not enough: [1] and [2] are no siblings.
        while self._blocks and _are_siblings(self._blocks[-1], start, size):
            left = self._blocks.pop()
            _add(left.term, term)
            start, size, term = left.start, 2 * left.size, left.term
        self._blocks.append(Block(start, size, _own(term)))

    def blocks(self) -> list[Block]:
        """The largest nodes of the tree so far, by start."""
        return list(self._blocks)


class FoldSum:
    """Sums consecutive terms from index ``start`` on, one after another. Takes them over, as `TreeSum` does."""

    def __init__(self, start: int = 0) -> None:
        self._start, self._size = start, 0
        self._term: Term = []

    def push(self, term: Term | Loose, size: int = 1) -> None:
        """Add the next term, or the sum of the next ``size`` terms."""
        if self._size == 0:
            self._term = _own(term)
        else:
            _add(self._term, term)
        self._size += size

    def blocks(self) -> list[Block]:
        """The sum so far as one block; none before the first term."""
        return [Block(self._start, self._size, self._term)] if self._size else []


SUMS: dict[ReductionName, type[TreeSum | FoldSum]] = {"tree": TreeSum, "fold": FoldSum}


def blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """``(start, size)`` of the largest nodes of the tree within ``start <= index < stop``, in order."""
    found = []
    while start < stop:
        size = 1 << ((stop - start).bit_length() - 1)
        if start:
            size = min(size, start & -start)
        found.append((start, size))
        start += size
    return found


def combine(parts: Iterable[Sequence[Block]], count: int, reduction: ReductionName = "tree") -> Term:
    """The sum of all ``count`` terms from the blocks of all slices. Takes the blocks over: it adds in place.

    Raises:
        ValueError: the blocks do not cover 0 to ``count - 1`` without gap or overlap.
    """
    total = SUMS[reduction]()
    reached = 0
    for block in sorted(itertools.chain.from_iterable(parts), key=lambda block: block.start):
        if block.start != reached:
            raise ValueError(
                f"no block starts at micro-batch {reached} of {count}; the next one starts at {block.start}"
            )
        total.push(block.term, block.size)
        reached += block.size
    if reached != count:
        raise ValueError(f"the blocks end at micro-batch {reached}, but the iteration has {count}")
    nodes = [block.term for block in total.blocks()]
    if not nodes:
        raise ValueError("there is nothing to sum: the iteration has no micro-batches")
    # What is left beyond the last full node hangs on the right edge of the tree.
    found = nodes.pop()
    while nodes:
        left = nodes.pop()
        _add(left, found)
        found = left
    return found


class Partial(NamedTuple):
    """One process's share of a sum of ``terms`` terms.

    ``like`` is a term of the same groups, shapes, dtypes and devices, whatever it holds; it is for processes
    that have no block, and may be ``None`` where there are some.
    """

    blocks: list[Block]
    terms: int
    reduction: ReductionName
    like: Term | None = None


Reduce: TypeAlias = Callable[[Partial], Term]
"""Turns this process's share into the sum over all processes, equal on each of them."""


def reduce_alone(partial: Partial) -> Term:
    """The `Reduce` of a process that has no others: its blocks are all there are."""
    return combine([partial.blocks], partial.terms, partial.reduction)


def leaves_of(term: Term) -> list[torch.Tensor]:
    """The tensors of all groups."""
    return [leaf for group in term for leaf in group]


def regrouped(leaves: list[torch.Tensor], like: Term) -> Term:
    """The inverse of `leaves_of`."""
    rest = iter(leaves)
    return [[next(rest) for _ in group] for group in like]


def _own(term: Term | Loose) -> Term:
    return term.packed() if isinstance(term, Loose) else term


def _add(left: Term, right: Term | Loose) -> None:
    if isinstance(right, Loose):
        assert isinstance(left, Packed)  # as all terms of an iteration are, if one is
        right.add_to(left)
        return
    for group, other in zip(left, right, strict=True):
        add_(group, other)


def _are_siblings(left: Block, start: int, size: int) -> bool:
    """Whether the node of ``size`` terms from ``start`` on is the other half of one that begins with ``left``."""
    return left.size == size and left.start % (2 * size) == 0
