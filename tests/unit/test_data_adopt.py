"""torch DataLoaders as recipes: the same batches where torch's order is fixed, an exact replay where it is not."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from helios_fn import random, tree
from helios_fn.data import Loader, Phases, Stream, as_source, from_dataloader
from helios_fn.types import Cursor, Share

KEY = random.key(6691)
NUMBERS = list(range(10))


def as_sets(samples):
    return set(samples)


def prepare(worker):
    pass


def indices(loader, epoch=0, key=KEY):
    return [batch.tolist() for batch in loader.epoch(key, epoch)]


def test_the_recipe_is_taken_over():
    """Dataset, batch size, collate function, drop_last and how workers are run."""
    theirs = DataLoader(
        NUMBERS,
        batch_size=3,
        drop_last=True,
        collate_fn=as_sets,
        num_workers=2,
        prefetch_factor=5,
        multiprocessing_context="spawn",
        worker_init_fn=prepare,
    )
    ours = from_dataloader(theirs)
    assert (ours.dataset, ours.batch_size, ours.drop_last, ours.collate) == (NUMBERS, 3, True, as_sets)
    assert (ours.workers, ours.prefetch, ours.worker_init) == (2, 5, prepare)
    assert ours.multiprocessing_context.get_start_method() == "spawn"
    assert ours.describe() == Loader(NUMBERS, 3, shuffle=False, drop_last=True).describe()


@pytest.mark.parametrize("drop_last", [False, True])
def test_sequential_loaders_give_the_batches_that_torch_gives(drop_last):
    """Also where batching was written out."""
    dataset = TensorDataset(torch.randn(10, 3), torch.arange(10))
    theirs = DataLoader(dataset, batch_size=4, drop_last=drop_last)
    explicit = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 4, drop_last))
    for loader in (theirs, explicit):
        assert tree.equal(list(from_dataloader(loader).epoch(KEY)), list(theirs))


def test_shuffling_loaders_become_shuffled():
    """With the O(1) order of our own, whatever generator they had."""
    theirs = DataLoader(NUMBERS, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
    assert indices(from_dataloader(theirs), 2) == indices(Loader(NUMBERS, 4), 2)
    assert from_dataloader(theirs).describe() == Loader(NUMBERS, 4).describe()


class Drawing(Sampler):
    """Draws from a generator of its own, NumPy's globals and Python's, and counts its epochs."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.legacy = np.random.RandomState(1)
        self.python = python_random.Random(1)
        self.epoch = 0

    def __len__(self):
        return 10

    def __iter__(self):
        self.epoch += 1
        yield from torch.randperm(5, generator=self.generator).tolist()
        yield int(self.numpy.integers(10))
        yield int(self.legacy.randint(10))
        yield self.python.randrange(10)
        yield int(np.random.randint(10))
        yield python_random.randrange(10)


class Bucketed(Sampler):
    """Batches of uneven sizes over another sampler; reuses one list for all of them."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return 3

    def __iter__(self):
        order, batch = list(self.sampler), []
        for start, end in ((0, 2), (2, 3), (3, 10)):
            batch[:] = order[start:end]
            yield batch


REPLAYED = {
    "with replacement": lambda: {"sampler": RandomSampler(NUMBERS, replacement=True)},
    "some samples": lambda: {"sampler": RandomSampler(NUMBERS, num_samples=7)},
    "more samples": lambda: {"sampler": RandomSampler(NUMBERS, num_samples=25)},
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0] * 5 + [9.0] * 5, 8)},
    "weighted, own generator": lambda: {
        "sampler": WeightedRandomSampler([1.0] * 10, 8, generator=torch.Generator().manual_seed(2))
    },
    "subset": lambda: {"sampler": SubsetRandomSampler([1, 3, 5, 7])},
    "drawing from everywhere": lambda: {"sampler": Drawing()},
    "batches": lambda: {"batch_size": 1, "batch_sampler": Bucketed(RandomSampler(NUMBERS))},
    "batches of a sampler with a generator": lambda: {
        "batch_size": 1,
        "batch_sampler": Bucketed(RandomSampler(NUMBERS, generator=torch.Generator().manual_seed(2))),
    },
}


@pytest.mark.parametrize("make", REPLAYED.values(), ids=REPLAYED.keys())
def test_other_samplers_are_replayed_exactly(make):
    """Same key, same epoch, same batches, for another instance and from any position; other epochs differ."""
    arguments = {"batch_size": 3} | make()
    before = random.ambient_fingerprint()
    ours, again = from_dataloader(DataLoader(NUMBERS, **arguments)), from_dataloader(DataLoader(NUMBERS, **arguments))
    whole = [indices(ours, epoch) for epoch in range(3)]
    assert [indices(again, epoch) for epoch in (2, 1, 0)] == whole[::-1]
    assert whole[0] != whole[1] != whole[2]
    for batch in range(len(ours)):
        feed = again.open(Cursor(0, 1, batch), key=KEY, share=Share())
        assert next(feed).items[0].tolist() == whole[1][batch]
    assert len(whole[0]) == len(ours) == len(DataLoader(NUMBERS, **arguments))
    assert random.drawn(before, random.ambient_fingerprint()) == []
    assert "replayed" in ours.describe()["order"]


def test_the_sampler_itself_is_not_touched():
    """Neither its generator nor its own counts advance."""
    sampler = Drawing()
    state = sampler.generator.get_state()
    list(from_dataloader(DataLoader(NUMBERS, batch_size=2, sampler=sampler)).epoch(KEY))
    assert sampler.epoch == 0
    assert torch.equal(sampler.generator.get_state(), state)


def test_samplers_that_are_told_the_epoch_are_told():
    """By the method that torch's own samplers have for it."""

    class Told(Sampler):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([self.epoch, self.epoch])

    ours = from_dataloader(DataLoader(NUMBERS, batch_size=2, sampler=Told()))
    assert indices(ours, 0) + indices(ours, 7) == [[0, 0], [7, 7]]


class Unsized(Sampler):
    def __iter__(self):
        return iter(NUMBERS)


class Counting(Sampler):
    """Keeps state where a copy cannot bring it back."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return 1

    def __iter__(self):
        self.seen.append(0)
        return iter([len(self.seen) % 10])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(NUMBERS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DataLoader(Endless()), TypeError, r"IterableDataset.*hf\.Stream"),
        (lambda: DataLoader(NUMBERS, batch_size=None), ValueError, "set batch_size=1"),
        (lambda: DataLoader(NUMBERS, sampler=Unsized()), ValueError, "Unsized has no length.*add __len__"),
        (
            lambda: DataLoader(NUMBERS, sampler=Counting()),
            ValueError,
            r"Counting gives other indices.*order=",
        ),
        (lambda: DataLoader(NUMBERS, sampler=DistributedSampler(NUMBERS, 2, 0)), ValueError, "plain dataset"),
        (
            lambda: DataLoader(NUMBERS, batch_sampler=Bucketed(DistributedSampler(NUMBERS, 2, 0))),
            ValueError,
            "plain dataset",
        ),
        (lambda: DataLoader([]), ValueError, "is empty"),
        (lambda: NUMBERS, TypeError, "needs a torch DataLoader, got list"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_remedy(make, error, message):
    """Rather than being approximated."""
    with pytest.raises(error, match=message):
        from_dataloader(make())


def test_as_source_takes_sources_phases_and_dataloaders():
    """The first two as they are."""
    loader, stream = Loader(NUMBERS, 2), Stream(lambda position, key: iter([(0, 0)]), 1)
    phases = Phases([loader], [])
    assert [as_source(each) for each in (loader, stream, phases)] == [loader, stream, phases]
    assert isinstance(as_source(DataLoader(NUMBERS)), Loader)


class Lines(IterableDataset):
    def __iter__(self):
        return iter("abc")


@pytest.mark.parametrize(
    ("given", "name", "remedy"),
    [
        (NUMBERS, "", r"becomes a loader by hf\.Loader\(data, batch_size\)"),
        ([1, 2, 3], "list", r"becomes a loader by hf\.Loader\(data, batch_size\)"),
        (torch.zeros(3), "Tensor", r"becomes a loader by hf\.Loader\(data, batch_size\)"),
        ((n for n in range(3)), "generator", r"hf\.Stream\(open, batch_size\)"),
        (Lines(), "Lines", r"hf\.Stream\(open, batch_size\)"),
        (DataLoader(Lines()), "Lines is an IterableDataset", r"hf\.Stream\(open, batch_size\)"),
        (None, r"hf\.Loader, hf\.Stream, hf\.Phases, .* got NoneType", "$"),
        (Loader, "got Loader", "$"),
        (3, "got int", "$"),
    ],
)
def test_as_source_says_what_it_takes(given, name, remedy):
    """And what it was given, and what to make of it."""
    with pytest.raises(TypeError, match=f"{name}.*{remedy}"):
        as_source(given)
