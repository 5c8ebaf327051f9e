"""Shared memory between workers and reader: used again and again, and nobody can tell."""

from __future__ import annotations

import gc
import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset, default_collate

from helios_fn import random, tree
from helios_fn.data import Loader, shared
from helios_fn.data.sampling import collate_into
from helios_fn.data.shared import BLOCKS, INLINE, Blocks
from helios_fn.types import Cursor, Share

KEY = random.key(6691)
LARGE = INLINE // 8 + 1  # float64 numbers: just too many for a message
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex128]


@pytest.fixture(autouse=True)
def _blocks_of_this_process():
    yield
    shared.forget([os.getpid()])


def travel(packed):
    """What the queue does."""
    return ForkingPickler.loads(ForkingPickler.dumps(packed))


def send(blocks, batch):
    blocks.begin()
    return travel(blocks.pack(batch))


def memory_of(tensor):
    return tensor.untyped_storage().data_ptr()


tensors = st.builds(
    lambda shape, dtype, seed: random.normal(random.key(seed), shape).mul(100).to(dtype),
    st.sampled_from([(), (0,), (3,), (2, 0, 4), (INLINE,), (7, INLINE // 4), (LARGE, 2, 1)]),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
leaves = tensors | st.sampled_from([1, 2.5, "text", None, np.arange(3)])
batches = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner), max_leaves=5
)


@given(found=st.lists(batches, min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_batches_arrive_as_they_were_sent(found):
    """Structure, dtypes, shapes, strides and bytes; memory is aligned as torch's own; kept batches stay as they are."""
    blocks = Blocks()
    arrived = [send(blocks, batch) for batch in found]
    for sent, kept in zip(found, arrived, strict=True):
        assert tree.equal(sent, kept)
        assert tree.structure(sent) == tree.structure(kept)
        for one, other in zip(tree.leaves(sent), tree.leaves(kept), strict=True):
            if isinstance(one, torch.Tensor):
                assert (one.stride(), one.dtype) == (other.stride(), other.dtype)
                assert other.data_ptr() % 64 == 0
    shared.forget([os.getpid()])


def test_conjugates_arrive_as_their_values():
    """The mark that torch puts on them instead of computing does not travel."""
    sent = [torch.tensor([1j] * n).conj() for n in (3, LARGE)]
    assert [tensor.tolist() for tensor in send(Blocks(), sent)] == [tensor.tolist() for tensor in sent]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(LARGE)[:, ::2],
        lambda: torch.randn(2, 64, 64, 3).permute(0, 3, 1, 2),
        lambda: torch.eye(200).to_sparse(),
        lambda: torch.ones(LARGE, requires_grad=True),
        lambda: torch.nn.Parameter(torch.ones(LARGE)),
        lambda: torch.ones(1).expand(LARGE),
    ],
    ids=["strided", "channels last", "sparse", "with gradient", "parameter", "expanded"],
)
def test_tensors_that_are_more_than_their_bytes_go_the_way_of_torch(make):
    """They arrive with all that they are."""
    sent = make()
    arrived = send(Blocks(), [sent])[0]
    assert (type(arrived), arrived.layout, arrived.requires_grad) == (type(sent), sent.layout, sent.requires_grad)
    assert torch.equal(arrived.to_dense(), sent.to_dense())
    assert sent.layout is torch.sparse_coo or arrived.stride() == sent.stride()


@pytest.mark.parametrize(
    "hold",
    [lambda t: t, lambda t: t[5:9], lambda t: t.numpy(), lambda t: t.untyped_storage(), lambda t: t.detach()],
    ids=["itself", "a part", "an array", "the memory", "detached"],
)
def test_memory_is_used_again_only_when_nothing_refers_to_it(hold):
    """Neither the tensor nor a view of any kind; then the very next batch is written there."""
    blocks, ones = Blocks(), torch.ones(LARGE, dtype=torch.float64)
    tensor = send(blocks, [ones])[0]
    place, held = memory_of(tensor), hold(tensor)
    del tensor
    other = send(blocks, [2 * ones])[0]
    assert memory_of(other) != place
    del held
    again = send(blocks, [3 * ones])[0]
    assert memory_of(again) == place
    assert (other[0], again[0]) == (2, 3)


def test_tensors_of_one_batch_are_independent():
    """A kept label keeps no images, and writing to one tensor is no change of another in autograd's eyes."""
    blocks, ones = Blocks(), torch.ones(LARGE, dtype=torch.float64)
    first, second = send(blocks, [ones, ones])
    assert memory_of(first) != memory_of(second)
    before, place = second._version, memory_of(first)
    first.zero_()
    assert second._version == before
    assert not first._is_view()
    del first
    assert memory_of(send(blocks, [ones])[0]) == place
    assert second.sum() == LARGE


def test_any_number_of_batches_may_be_kept():
    """Beyond the blocks that a worker has, and the blocks are all used again afterwards."""
    blocks = Blocks()
    kept = [send(blocks, [torch.full((LARGE,), float(at))])[0] for at in range(BLOCKS + 5)]
    kept = [send(blocks, [torch.full((2 * LARGE,), float(at))])[0] for at in range(BLOCKS + 5)] + kept
    assert [int(tensor[-1]) for tensor in kept] == [*range(BLOCKS + 5)] * 2
    del kept
    gc.collect()
    # Those that are too small by now are replaced.
    larger = [send(blocks, [torch.full((8 * LARGE,), float(at))])[0] for at in range(BLOCKS)]
    assert [int(tensor[-1]) for tensor in larger] == [*range(BLOCKS)]
    assert len({place for place in shared._opened if place[0] == os.getpid()}) == BLOCKS


def test_a_batch_that_cannot_be_sent_keeps_no_memory():
    """What was given out for it is free for the next one."""
    blocks, ones = Blocks(), torch.ones(LARGE, dtype=torch.float64)
    place = memory_of(send(blocks, [ones])[0])
    for _ in range(3):
        blocks.begin()
        with pytest.raises(Exception, match=r"pickle|local object"):
            blocks.pack([ones, lambda: None])
    assert memory_of(send(blocks, [ones])[0]) == place


def test_what_a_fork_drops_is_still_in_use():
    """A copy of a tensor that goes in a forked process gives nothing back."""
    blocks, ones = Blocks(), torch.ones(LARGE, dtype=torch.float64)
    tensor = send(blocks, [ones])[0]
    child = os.fork()
    if child == 0:
        del tensor
        os._exit(0)
    os.waitpid(child, 0)
    assert memory_of(send(blocks, [2 * ones])[0]) != memory_of(tensor)
    assert tensor.sum() == LARGE


WRAPS = [lambda t: t, lambda t: {"x": t, "n": 3}, lambda t: (t, 1.5, "a"), lambda t: [t.numpy(), t]]


@given(
    rows=st.integers(1, 4),
    wrap=st.sampled_from(WRAPS),
    dtype=st.sampled_from([torch.float32, torch.int64, torch.bool]),
    n=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_collating_into_shared_memory_is_torchs_collating(rows, wrap, dtype, n):
    """For samples of any structure."""
    samples = [wrap(torch.full((rows, LARGE), at).to(dtype)) for at in range(n)]
    found, expected = collate_into(Blocks().empty, samples), default_collate(samples)
    assert tree.equal(found, expected)
    assert tree.structure(found) == tree.structure(expected)


@given(dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4), gradient=st.booleans())
@settings(deadline=None, max_examples=30)
def test_collating_promotes_mixed_dtypes_as_the_main_process_does(dtypes, gradient):
    """Which torch's own workers do not; a gradient goes on."""
    samples = [torch.ones(LARGE).to(dtype) for dtype in dtypes]
    if gradient and samples[-1].is_floating_point():
        samples[-1].requires_grad_()
    found, expected = collate_into(Blocks().empty, samples), default_collate(samples)
    assert found.requires_grad == expected.requires_grad
    assert tree.equal(found.detach(), expected.detach())


class Rows:
    """Large tensors from a class that nothing is known about."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"x": torch.full((LARGE,), float(index)), "y": index}


@pytest.mark.parametrize(
    "dataset",
    [Rows(), TensorDataset(torch.arange(40.0 * LARGE).reshape(40, LARGE), torch.arange(40))],
    ids=["samples", "columns"],
)
def test_workers_hand_over_what_the_main_process_would_read(dataset):
    """Kept or dropped, within an epoch, over epochs and seeks; and a closed loader leaves no memory behind."""
    before = set(shared._opened)
    here, loader = Loader(dataset, 3, seed_globals=False), Loader(dataset, 3, seed_globals=False, workers=2, prefetch=3)
    kept = [list(loader.epoch(KEY, epoch)) for epoch in range(3)]
    for batch in range(9):  # most of what is read ahead is thrown away
        next(loader.open(Cursor(batch=batch), key=KEY, share=Share()))
    for epoch in (0, 1, 2):
        assert tree.equal(list(loader.epoch(KEY, epoch)), list(here.epoch(KEY, epoch)))
        assert tree.equal(kept[epoch], list(here.epoch(KEY, epoch)))
    opened = len(set(shared._opened) - before)
    for batch in range(14):
        next(loader.open(Cursor(batch=batch), key=KEY, share=Share()))
    assert len(set(shared._opened) - before) == opened
    loader.close()
    assert set(shared._opened) == before
    assert tree.equal(kept[0], list(here.epoch(KEY, 0)))
