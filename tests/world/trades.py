"""What the ranks of a pool exchange in the tests of exchanges. A module of its own, which they can import."""

from __future__ import annotations

import contextlib
import os
from unittest import mock

import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.distributed import World, all_gather, all_reduce, barrier, broadcast, exchange
from helios_fn.distributed.reduction import SUMS, Partial
from helios_fn.schedule import rank_slice

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.complex64, torch.int64)
SHAPES = ((), (0,), (3,), (2, 0, 4), (5, 7))


def rank() -> int:
    return int(os.environ["RANK"])


def connected() -> World:
    return hf.distributed.connect(20.0)


def values_of(rank: int, dtypes) -> dict:
    """A tree of small whole numbers, whose sums are exact in every dtype, with other ones for each rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    return {
        f"{dtype}-{shape}": torch.randint(0, 8, shape, generator=generator).to(dtype)
        for dtype in dtypes
        for shape in SHAPES
    }


def reduced(op):
    connected()
    found = all_reduce(values_of(rank(), [each for each in DTYPES if op == "sum" or each.is_floating_point]), op)
    return {path: leaf.tolist() for path, leaf in found.items()}, [leaf.dtype for leaf in found.values()]


def gathered_and_broadcast(source):
    connected()
    mine = values_of(rank(), [*DTYPES, torch.bool])
    before = tree.map(torch.clone, mine)
    every, one = all_gather(mine), broadcast(mine, source)
    barrier()
    assert tree.equal(mine, before), "an argument was written to"
    return every, one


def misused():
    connected()
    found = []
    for call in (
        lambda: broadcast(torch.ones(1), 7),
        lambda: all_reduce({"a": 1.0}),
        lambda: all_reduce({"n": torch.tensor(1)}, "mean"),
        lambda: all_reduce(torch.ones(1), "max"),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def random_terms(seed: int, count: int, dtypes, numel: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(3 * torch.randn(count, generator=generator))
    groups = [[(torch.randn(numel, generator=generator)).to(dtype), torch.ones((), dtype=dtype)] for dtype in dtypes]
    return [[[(scale * leaf).to(leaf.dtype) for leaf in group] for group in groups] for scale in scales.tolist()]


def summed(seed, count, dtypes, numel, reduction, limit):
    """The sum over all ranks of the same terms, each rank holding its share; and the ways that were taken."""
    world = connected()
    terms = random_terms(seed, count, dtypes, numel)
    start, stop = rank_slice(count, world.rank, world.size)
    total = SUMS[reduction](start)
    for term in terms[start:stop]:
        total.push(term)
    like = None if start < stop else terms[0]
    ways: list[str] = []
    # Undone at the end: this process lives on, and others would send messages of other sizes.
    with contextlib.ExitStack() as patches:
        for name in ("GATHERED_BYTES", "PAIR_BYTES"):
            patches.enter_context(mock.patch.object(exchange, name, limit))
        for name in ("_gathered", "_all_reduced", "_scattered"):
            patches.enter_context(mock.patch.object(exchange, name, watched(name, ways)))
        return world.reduce(Partial(total.blocks(), count, reduction, like)), sorted(set(ways))


def watched(name, ways):
    plain = getattr(exchange, name)

    def call(*args):
        ways.append(name)
        return plain(*args)

    return call


def wrong_share(count):
    """Rank 1 hands over micro-batch 0."""
    world = connected()
    if rank() == 1:
        total = SUMS["tree"](0)
        total.push([[torch.ones(2)]])
        world.reduce(Partial(total.blocks(), count, "tree"))
