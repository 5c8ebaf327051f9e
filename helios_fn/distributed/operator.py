"""The exchange as one operator that the compiler does not look into.

Collectives that the compiler sees may be reordered, in one way here and in another on the next process, whose graph is
not quite the same; then messages meet that do not belong together. An operator of our own stays one piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .buckets import buckets, spread
from .reduction import Block, Partial, Term, leaves_of, regrouped

Flat = Callable[[Partial], list[torch.Tensor]]
"""`exchange_flat` of the processes that train together right now."""


@functools.cache
def register(exchange: Flat) -> None:
    """Make the operator known, to be called before anything is compiled."""

    def run(
        leaves: list[torch.Tensor], starts: list[int], sizes: list[int], terms: int, reduction: str
    ) -> list[torch.Tensor]:
        width = len(leaves) // len(starts)
        blocks = [
            # The exchange writes into what it is given, which an operator may not.
            Block(start, size, [[leaf.clone() for leaf in leaves[at * width : (at + 1) * width]]])
            for at, (start, size) in enumerate(zip(starts, sizes, strict=True))
        ]
        # No output may share memory with another, and what was gathered lies in one message.
        return [flat.clone() for flat in exchange(Partial(blocks, terms, reduction))]  # type: ignore[arg-type]

    def fake(
        leaves: list[torch.Tensor], starts: list[int], sizes: list[int], terms: int, reduction: str
    ) -> list[torch.Tensor]:
        found = buckets(leaves[: len(leaves) // len(starts)])
        return [torch.empty(bucket.numel, dtype=bucket.dtype, device=bucket.device) for bucket in found]

    operator = torch.library.custom_op("helios_fn::exchange", run, mutates_args=())
    operator.register_fake(fake)


def exchange_traced(partial: Partial) -> Term:
    """What `exchange` returns, in a region that is being compiled; ``partial`` has at least one block."""
    like = partial.blocks[0].term
    leaves = [leaf for block in partial.blocks for leaf in leaves_of(block.term)]
    starts, sizes = [block.start for block in partial.blocks], [block.size for block in partial.blocks]
    flats = torch.ops.helios_fn.exchange(leaves, starts, sizes, partial.terms, partial.reduction)
    return regrouped(spread(buckets(leaves_of(like)), flats), like)
