"""Reading other people's loaders: a torch `DataLoader` is taken as a recipe and rebuilt."""

from __future__ import annotations

import copy
import random as python_random
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)

from .. import random
from ..types import Key, Source
from .loader import Loader
from .order import CustomBatches, CustomOrder, Order, Sequential, Shuffled
from .phases import Phases


def as_source(data: Any) -> Source | Phases:
    """What the driver reads, from whatever it was given: a `Source` or `Phases` as they are, a `DataLoader` rebuilt.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(data, DataLoader):
        return from_dataloader(data)
    if isinstance(data, Source | Phases) and not isinstance(data, type):
        return data
    raise TypeError(
        "data must be an hf.Loader, hf.Stream, hf.Phases, another Source, or a map-style torch DataLoader; "
        f"got {data.__name__ if isinstance(data, type) else type(data).__name__}{_remedy(data)}"
    )


def _remedy(data: Any) -> str:
    if isinstance(data, type) or data is None:
        return ""
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return ". A dataset, also a list of samples, becomes a loader by hf.Loader(data, batch_size)"
    if isinstance(data, IterableDataset) or hasattr(data, "__iter__"):
        return (
            ", which cannot be read from the middle. Say how to open it at a position: hf.Stream(open, batch_size), "
            "where open(position, key) gives pairs of a sample and the position after it"
        )
    return ""


def from_dataloader(loader: DataLoader[Any]) -> Loader:
    """A `Loader` with the dataset, batches, order, collate function and workers of a torch `DataLoader`.

    Sequential and random samplers over the whole dataset become `Sequential` and `Shuffled`. Any other
    sampler or batch sampler is replayed in each epoch, from a copy, inside a keyed scope, and with
    generators of its own replaced by keyed ones: a sampler that then gives the same indices twice is
    exact, and another is refused. The `DataLoader` itself is not touched.

    Raises:
        ValueError: it cannot be made exact; says what to do instead.
        TypeError: it is no map-style `DataLoader`.

    Example:
        >>> hf.data.from_dataloader(torch.utils.data.DataLoader(torch.arange(10), batch_size=4, shuffle=True))
        Loader(length=10, batch_size=4, order='shuffled', drop_last=False, batches_per_epoch=3, workers=0)
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"from_dataloader needs a torch DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} is an IterableDataset, which cannot be read from the middle: "
            "say how to open it at a position with hf.Stream(open, batch_size)"
        )
    sampler, batch_size, drop_last = _recipe(loader)
    order = _order(sampler, loader.dataset, whole_batches=batch_size is None)
    return Loader(
        loader.dataset,
        batch_size,
        order=order,
        drop_last=drop_last,
        workers=loader.num_workers,
        collate=None if loader.collate_fn is default_collate else loader.collate_fn,
        pin_memory=loader.pin_memory,
        prefetch=loader.prefetch_factor or 2,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init=loader.worker_init_fn,
    )


def _recipe(loader: DataLoader[Any]) -> tuple[Any, int | None, bool]:
    """Sampler, batch size and drop_last; a batch sampler and ``None`` where it decides the batches itself."""
    if loader.batch_sampler is None:
        raise ValueError(
            "a DataLoader with batch_size=None gives single samples, not batches: set batch_size=1 (and a collate_fn "
            "that takes the sample out of its list)"
        )
    batching = loader.batch_sampler
    if type(batching) is BatchSampler:
        return batching.sampler, batching.batch_size, batching.drop_last
    return batching, None, False


def _order(sampler: Any, dataset: Any, *, whole_batches: bool) -> Order | CustomBatches:
    for part in (sampler, *_parts(sampler)):
        if isinstance(part, DistributedSampler):
            raise ValueError(
                "a DistributedSampler deals out the data itself, and so would the run: give the DataLoader the plain "
                "dataset (shuffle=True), every process then reads its own part of each iteration"
            )
    if type(sampler) is SequentialSampler and len(sampler) == len(dataset):
        return Sequential()
    if type(sampler) is RandomSampler and not sampler.replacement and _spans(sampler, dataset):
        return Shuffled()
    return _replayed(sampler, whole_batches=whole_batches)


def _spans(sampler: RandomSampler, dataset: Any) -> bool:
    """Whether a sampler goes once over the whole dataset, not over a part of it or several times."""
    return len(sampler) == len(dataset) == len(sampler.data_source)


def _replayed(sampler: Any, *, whole_batches: bool) -> CustomOrder | CustomBatches:
    name = type(sampler).__name__
    try:
        length = len(sampler)
    except TypeError as error:
        raise ValueError(f"{name} has no length, which a run needs to count epochs: add __len__ to it") from error
    replay = Replay(sampler, whole_batches=whole_batches)
    key = random.key(0)
    if replay(key, 0, length) != replay(key, 0, length):
        raise ValueError(
            f"{name} gives other indices each time it is read, even from the same seeds: it keeps state that a resume "
            "could not bring back. Make it a function (key, epoch, n) -> indices and give that to "
            "hf.Loader(dataset, batch_size, order=function)"
        )
    label = f"replayed {name}"
    return CustomBatches(replay, length, label) if whole_batches else CustomOrder(replay, length, label)


class Replay:
    """Reads one epoch of a torch sampler as a pure function of the key."""

    def __init__(self, sampler: Any, *, whole_batches: bool) -> None:
        self._sampler = sampler
        self._whole_batches = whole_batches

    def __call__(self, key: Key, epoch: int, n: int) -> list[Any]:
        """What the sampler gives in that epoch: indices, or batches of them."""
        key = random.fold_in(key, "sampler")
        with random.scope(key):
            sampler = _rekeyed(self._sampler, key)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            # Batches are copied, since a sampler may reuse its list.
            return [[*batch] for batch in sampler] if self._whole_batches else [*sampler]


def _parts(sampler: Any) -> list[Any]:
    return [value for value in getattr(sampler, "__dict__", {}).values() if isinstance(value, Sampler)]


def _rekeyed(sampler: Any, key: Key) -> Any:
    """A shallow copy of a sampler whose own generators, also in samplers that it holds, start from ``key``."""
    if not hasattr(sampler, "__dict__"):
        return sampler
    copied = copy.copy(sampler)
    for name, value in vars(copied).items():
        inner = random.fold_in(key, name)
        if isinstance(value, Sampler):
            setattr(copied, name, _rekeyed(value, inner))
        elif isinstance(value, torch.Generator):
            # The device stays, for a sampler may draw there.
            seed, _ = random.key_words(inner)
            setattr(copied, name, torch.Generator(value.device).manual_seed(seed))
        elif isinstance(value, np.random.Generator):
            setattr(copied, name, random.numpy_generator(inner))
        elif isinstance(value, np.random.RandomState):
            setattr(copied, name, np.random.RandomState(random.key_words(inner)[0] % 2**32))
        elif isinstance(value, python_random.Random):
            setattr(copied, name, python_random.Random(random.key_words(inner)[0]))
    return copied
