"""Sums over processes: who sends what to whom, so that the order of summation is the one that was promised.

In tree order the result is the same bits for any number of processes, each of which holds the sums of the largest nodes
of the tree within its slice (see `reduction`). Three ways lead there, by size:

- *gather*: everybody sends its nodes to everybody, in one message, and sums all of them. One round: for little data.
- *scatter*: every process sums one part of the data, then the parts are gathered. Two rounds, of which each moves
  ``1 / size`` of the data to every other process: as much as the best all-reduce moves (Rabenseifner, "Optimization of
  Collective Reduction Operations", 2004), in an order of our own.
- *all-reduce*: the backend's own, where its order cannot matter: two processes with one node each. In fold order it
  serves any number of processes, as in `torch.nn.parallel.DistributedDataParallel`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ..accumulate import add_
from ..schedule import rank_slice
from ..types import ReductionName
from .buckets import Bucket, aligned, as_bytes, buckets, spread
from .channel import Channel
from .reduction import Block, Partial, Term, blocks, combine, leaves_of, regrouped
from .rooms import Packed, Packing

GATHERED_BYTES = 256 << 10
"""Up to this much from each process, one round of larger messages is faster than two of smaller ones."""

PAIR_BYTES = 16 << 20
"""The same for two processes with one node each. An all-reduce would move as much, but take its turn for each dtype."""

Nodes = list[tuple[int, int]]
"""``(start, size)`` of the sums that one process holds."""


def exchange(channel: Channel, partial: Partial) -> Term:
    """The sum of all terms of all processes, the same bits on each of them.

    Raises:
        ValueError: this process does not hold the share that is its own, or has neither a block nor a ``like``.
    """
    like = partial.blocks[0].term if partial.blocks else partial.like
    if like is None:
        raise ValueError(f"process {channel.rank} has no micro-batch, and nothing says what a term looks like")
    if isinstance(like, Packed):
        plan = _checked_plan(channel, partial)
        if _is_gathered(plan, sum(like.packing.sizes)):
            return _gathered_pieces(channel, plan, partial, like)
    found = buckets(leaves_of(like))
    return regrouped(spread(found, exchange_flat(channel, partial, found)), like)


def exchange_flat(channel: Channel, partial: Partial, found: list[Bucket]) -> list[torch.Tensor]:
    """The same as one vector for each bucket."""
    plan = _checked_plan(channel, partial)
    if _is_gathered(plan, sum(bucket.nbytes for bucket in found)):
        return _gathered(channel, plan, partial, found)
    if _any_order(plan, partial.reduction):
        return _all_reduced(channel, partial, found)
    small = [bucket for bucket in found if bucket.nbytes * max(map(len, plan)) <= GATHERED_BYTES]
    sums = dict(zip(small, _gathered(channel, plan, partial, small), strict=True)) if small else {}
    return [sums[each] if each in sums else _scattered(channel, plan, partial, each) for each in found]


def _checked_plan(channel: Channel, partial: Partial) -> list[Nodes]:
    plan = nodes_of_all(partial.terms, channel.size, partial.reduction)
    held = [(block.start, block.size) for block in partial.blocks]
    if held != plan[channel.rank]:
        raise ValueError(
            f"process {channel.rank} of {channel.size} holds the micro-batches {_ranges(held)} of {partial.terms}, but "
            f"its share is {_ranges(plan[channel.rank])}: hand the step what the driver or the loader's feed delivered"
        )
    return plan


def _is_gathered(plan: list[Nodes], nbytes: int) -> bool:
    """Whether everybody sends its nodes, of ``nbytes`` each, to everybody."""
    return nbytes * max(map(len, plan)) <= (PAIR_BYTES if _is_pair(plan) else GATHERED_BYTES)


@functools.lru_cache(maxsize=64)  # every iteration of a run asks the same question
def nodes_of_all(terms: int, size: int, reduction: ReductionName) -> list[Nodes]:
    """The sums that each process holds of an iteration of ``terms`` micro-batches."""
    slices = [rank_slice(terms, rank, size) for rank in range(size)]
    if reduction == "tree":
        return [blocks(start, stop) for start, stop in slices]
    return [[(start, stop - start)] if stop > start else [] for start, stop in slices]


def _any_order(plan: list[Nodes], reduction: ReductionName) -> bool:
    return reduction == "fold" or _is_pair(plan)


def _is_pair(plan: list[Nodes]) -> bool:
    # The sum of two is the same in both orders.
    return [len(nodes) for nodes in plan] == [1, 1]


def _gathered(channel: Channel, plan: list[Nodes], partial: Partial, found: list[Bucket]) -> list[torch.Tensor]:
    """Everybody's nodes, in one message of bytes per device, summed here."""
    sums: dict[int, torch.Tensor] = {}
    for device in dict.fromkeys(bucket.device for bucket in found):
        members = [(place, bucket) for place, bucket in enumerate(found) if bucket.device == device]
        own = [[bucket.flat(leaves_of(block.term)) for _, bucket in members] for block in partial.blocks]
        message = as_bytes([flat for flats in own for flat in flats], device)
        length = sum(aligned(bucket.nbytes) for _, bucket in members)
        received = channel.gather(message, [length * len(nodes) for nodes in plan])
        terms = [
            own if rank == channel.rank else [_unpacked(each, members) for each in _split(data, len(plan[rank]))]
            for rank, data in enumerate(received)
        ]
        (total,) = combine(_as_blocks(plan, terms), partial.terms, partial.reduction)
        sums.update(zip([place for place, _ in members], total, strict=True))
    return [sums[place] for place in range(len(found))]


def _gathered_pieces(channel: Channel, plan: list[Nodes], partial: Partial, like: Packed) -> Term:
    """The same of terms that lie in memory as they are sent."""
    packing = like.packing
    if _is_pair(plan) and len(packing.devices) == 1:
        return _traded(channel, partial, packing)
    pieces: list[Sequence[Sequence[torch.Tensor]]] = []
    for at, (device, length) in enumerate(zip(packing.devices, packing.sizes, strict=True)):
        own = [block.term.pieces[at] for block in partial.blocks]  # type: ignore[attr-defined]
        message = (
            own[0] if len(own) == 1 else torch.cat(own) if own else torch.empty(0, dtype=torch.uint8, device=device)
        )
        received = channel.gather(message, [length * len(nodes) for nodes in plan])
        pieces.append([_split(data, len(plan[rank])) for rank, data in enumerate(received)])
    found = list(partial.blocks)
    for rank, nodes in enumerate(plan):
        if rank != channel.rank:
            found += [
                Block(*node, Packed(packing, [piece[rank][which] for piece in pieces]))
                for which, node in enumerate(nodes)
            ]
    return combine([found], partial.terms, partial.reduction)


def _traded(channel: Channel, partial: Partial, packing: Packing) -> Term:
    """The same of two processes with one node each: what comes is received where it can be summed."""
    (own,), other = partial.blocks, packing.room()
    channel.trade(own.term.pieces[0], other.pieces[0])  # type: ignore[attr-defined]
    terms = [own.term, other] if channel.rank == 0 else [other, own.term]
    add_(terms[0][0], terms[1][0])
    if terms[0] is not other:
        packing.give_back(other)
    return terms[0]


def _all_reduced(channel: Channel, partial: Partial, found: list[Bucket]) -> list[torch.Tensor]:
    if partial.blocks:
        (block,) = partial.blocks
        flats = [bucket.flat(leaves_of(block.term)) for bucket in found]
    else:
        flats = [torch.zeros(bucket.numel, dtype=bucket.dtype, device=bucket.device) for bucket in found]
    channel.sum_(flats)
    return flats


def _scattered(channel: Channel, plan: list[Nodes], partial: Partial, bucket: Bucket) -> torch.Tensor:
    """Part r of everybody's nodes goes to rank r, is summed there, and comes back to all."""
    rank = channel.rank
    cuts = [slice(*rank_slice(bucket.numel, each, channel.size)) for each in range(channel.size)]
    widths = [cut.stop - cut.start for cut in cuts]
    own = [bucket.flat(leaves_of(block.term)) for block in partial.blocks]
    away = [flat[cut] for to, cut in enumerate(cuts) for flat in own if to != rank]
    outgoing = torch.cat(away) if away else torch.empty(0, dtype=bucket.dtype, device=bucket.device)
    given = [width * len(own) for width in widths]
    received = channel.swap(outgoing, given, [widths[rank] * len(nodes) for nodes in plan])
    terms = [
        [[flat[cuts[rank]]] for flat in own] if each == rank else [[part] for part in _split(data, len(plan[each]))]
        for each, data in enumerate(received)
    ]
    ((total,),) = combine(_as_blocks(plan, terms), partial.terms, partial.reduction)
    return torch.cat(channel.gather(total, widths))


def _as_blocks(plan: list[Nodes], terms: Sequence[Sequence[list[torch.Tensor]]]) -> list[list[Block]]:
    return [
        [Block(*node, [term]) for node, term in zip(nodes, held, strict=True)]
        for nodes, held in zip(plan, terms, strict=True)
    ]


def _split(data: torch.Tensor, parts: int) -> Sequence[torch.Tensor]:
    return data.split(data.numel() // parts) if parts and data.numel() else [data] * parts


def _unpacked(data: torch.Tensor, members: Sequence[tuple[int, Bucket]]) -> list[torch.Tensor]:
    """The flat tensors of one node, as views of its bytes."""
    found, start = [], 0
    for _, bucket in members:
        found.append(data[start : start + bucket.nbytes].view(bucket.dtype))
        start += aligned(bucket.nbytes)
    return found


def _ranges(nodes: Nodes) -> str:
    return f"{nodes[0][0]} to {sum(nodes[-1]) - 1}" if nodes else "(none)"
