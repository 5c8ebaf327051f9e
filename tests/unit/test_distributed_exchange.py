"""The sum over processes is the same bits on each, whichever way the data travels. Threads stand for processes here."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.distributed import exchange as module
from helios_fn.distributed.buckets import buckets
from helios_fn.distributed.channel import Channel
from helios_fn.distributed.exchange import exchange
from helios_fn.distributed.reduction import SUMS, Partial, combine, leaves_of
from helios_fn.distributed.rooms import Loose, Packing
from helios_fn.schedule import rank_slice

WAYS = {"gather": (1 << 30, 1 << 30), "scatter or all-reduce": (0, 0), "small ones gathered": (64, 0)}


class ThreadChannel(Channel):
    """The messages between threads: ``lines[a][b]`` is the way from a to b."""

    def __init__(self, rank: int, lines) -> None:
        self.rank, self.size, self._lines = rank, len(lines), lines

    def swap(self, flat, given, taken):
        given = [0 if rank == self.rank else n for rank, n in enumerate(given)]
        assert flat.numel() == sum(given)
        for rank, part in enumerate(flat.split(given)):
            self._lines[self.rank][rank].put(part.clone())
        received = [self._lines[rank][self.rank].get(timeout=10) for rank in range(self.size)]
        assert [part.numel() for part in received] == [0 if r == self.rank else n for r, n in enumerate(taken)]
        return received

    def trade(self, flat, into):
        (received,) = [part for part in self.gather(flat, [flat.numel()] * 2) if part is not flat]
        into.copy_(received)

    def sum_(self, flats):
        for flat in flats:
            for rank, part in enumerate(self.gather(flat.clone(), [flat.numel()] * self.size)):
                flat.copy_(part) if rank == 0 else flat.add_(part)


def random_term(generator):
    """A weight, some gradients (one in another order in memory, one empty), a counter."""
    scale = torch.exp(4 * torch.randn((), generator=generator))
    grads = [scale * torch.randn(shape, generator=generator) for shape in ((40,), (2, 3, 4, 5), (0, 3), ())]
    grads[1] = grads[1].to(memory_format=torch.channels_last)
    return [[torch.rand((), generator=generator).double()], grads, [torch.randint(0, 9, (3,), generator=generator)]]


def packing_of(term) -> Packing:
    leaves = leaves_of(term)
    return Packing(buckets(leaves, in_memory_order=True), leaves)


def summed(size: int, count: int, seed: int, reduction, *, packs: bool = False) -> list:
    """What each of ``size`` processes gets for the sum of ``count`` random terms."""
    generator = torch.Generator().manual_seed(seed)
    terms = [random_term(generator) for _ in range(count)]
    lines = [[queue.Queue() for _ in range(size)] for _ in range(size)]

    def one(rank: int):
        start, stop = rank_slice(count, rank, size)
        total = SUMS[reduction](start)
        packing = packing_of(terms[0])

        def own(term):
            return Loose(packing, leaves_of(term), 1, 1, matching=False) if packs else tree.map(torch.clone, term)

        for term in terms[start:stop]:
            total.push(own(term))
        like = own(terms[0]).packed() if packs else own(terms[0])
        return exchange(ThreadChannel(rank, lines), Partial(total.blocks(), count, reduction, like))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@settings(deadline=None, max_examples=20)
@given(size=st.integers(2, 5), count=st.integers(1, 9), seed=st.integers(0, 999), way=st.sampled_from([*WAYS]))
def test_every_process_gets_the_bits_of_one_that_is_alone(size, count, seed, way):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GATHERED_BYTES", WAYS[way][0])
        patch.setattr(module, "PAIR_BYTES", WAYS[way][1])
        found = summed(size, count, seed, "tree")
        folded = summed(size, count, seed, "fold")
    generator = torch.Generator().manual_seed(seed)
    total = SUMS["tree"]()
    for _ in range(count):
        total.push(random_term(generator))
    alone = combine([total.blocks()], count)
    assert all(tree.equal(each, alone) for each in found)
    assert all(tree.equal(each, folded[0]) for each in folded)


@settings(deadline=None, max_examples=10)
@given(size=st.integers(2, 4), count=st.integers(1, 6), seed=st.integers(0, 999), way=st.sampled_from([*WAYS]))
def test_packed_terms_have_the_same_sum_as_loose_ones(size, count, seed, way):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GATHERED_BYTES", WAYS[way][0])
        patch.setattr(module, "PAIR_BYTES", WAYS[way][1])
        for reduction in SUMS:
            plain, packed = (summed(size, count, seed, reduction, packs=packs) for packs in (False, True))
            packing = packing_of(random_term(torch.Generator()))
            assert tree.equal([packing.leaves(vectors) for (vectors,) in packed], [*map(leaves_of, plain)])
