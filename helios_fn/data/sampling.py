"""Reading a batch: a pure function of (key, epoch, batch, indices), the same in any process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch.utils.data import TensorDataset, default_collate, get_worker_info

from .. import random, tree
from ..types import Key
from .plan import Task

Collate: TypeAlias = Callable[[list[Any]], Any]
Transform: TypeAlias = Callable[[Any, np.random.Generator], Any]

_PLAIN = (torch.Tensor, np.ndarray, np.generic, bool, int, float, complex, str, bytes)


@runtime_checkable
class KeyedDataset(Protocol):
    """A dataset whose samples take their randomness from a generator instead of global state."""

    def __len__(self) -> int: ...

    def keyed_item(self, index: int, rng: np.random.Generator, /) -> Any:
        """The sample, in place of ``__getitem__``.

        ``rng`` is keyed by (key, epoch, index) and belongs to this one call: draw from it, do not keep it.
        """


class Failure(NamedTuple):
    """What a worker sends back in place of a batch that it could not read: one line, and the traceback."""

    message: str
    traceback: str


class Reader:
    """Reads the batch of a task.

    The randomness of a sample is a function of (key, epoch, index), that of the collate function one
    of (key, epoch, batch). It reaches them as an explicit generator and, with ``seed_globals``, through
    the global generators of torch, NumPy and `random`, which are seeded before every call.
    """

    def __init__(
        self, dataset: Any, *, collate: Collate | None, transform: Transform | None, seed_globals: bool
    ) -> None:
        self._dataset = dataset
        self._collate: Collate = default_collate if collate is None else collate
        self._transform = transform
        self._keyed = isinstance(dataset, KeyedDataset)
        # A TensorDataset draws nothing, and indexing its tensors gives what stacking its samples would.
        # A subclass may do anything.
        self._drawless = type(dataset) is TensorDataset and transform is None
        indexable = self._drawless and self._collate is default_collate
        self._tensors: Sequence[torch.Tensor] | None = dataset.tensors if indexable else None
        self.seeds_globals = seed_globals and not indexable
        self._rng: np.random.Generator | None = None

    def read(self, task: Task) -> Any:
        """The batch of a task.

        Raises:
            RuntimeError: the dataset, the transform or the collate function raised; names the sample.
        """
        if self._tensors is not None:
            indices = torch.from_numpy(task.indices)
            return [tensor.index_select(0, indices.to(tensor.device)) for tensor in self._tensors]
        key = torch.tensor(task.key, dtype=torch.int64, device="cpu")
        samples = self._samples(key, task)
        if self.seeds_globals:
            seed_globals_for(key, "collate", task.epoch, task.batch)
        try:
            return self._collate(samples)
        except Exception as error:
            raise RuntimeError(
                f"the samples of batch {task.batch} of epoch {task.epoch} could not be made into a batch "
                f"({brief(error)}): give the loader a collate function that fits them"
            ) from error

    def __getitem__(self, task: Task) -> Any:
        """`read` for a worker: failures come back as values, and workers live on."""
        try:
            batch = self.read(task)
            _check_sendable(batch)
        except Exception as error:
            info = get_worker_info()
            where = f"in worker {info.id}: " if info is not None else ""
            return Failure(f"{where}{error}", traceback.format_exc())
        return batch

    def _samples(self, key: Key, task: Task) -> list[Any]:
        indices = task.indices.tolist()
        plain = self._drawless or not (self.seeds_globals or self._keyed or self._transform is not None)
        if plain and hasattr(self._dataset, "__getitems__"):
            return self._many(indices, task)
        if plain:
            return [self._one(index, None, task) for index in indices]
        words = random.sample_words(key, task.epoch, task.indices)
        return [self._one(index, row, task) for index, row in zip(indices, words, strict=True)]

    def _many(self, indices: list[int], task: Task) -> list[Any]:
        try:
            return list(self._dataset.__getitems__(indices))
        except (Exception, SystemExit) as error:
            raise _unreadable(f"the samples {indices}", task, error) from error

    def _one(self, index: int, words: Any, task: Task) -> Any:
        try:
            if words is not None and self.seeds_globals:
                random.seed_globals(words)
            if not self._keyed and self._transform is None:
                return self._dataset[index]
            rng = self._rng = random.sample_generator(words, reuse=self._rng)
            sample = self._dataset.keyed_item(index, rng) if self._keyed else self._dataset[index]
            return sample if self._transform is None else self._transform(sample, rng)
        # SystemExit too: a dataset that exits would take its worker along without a word.
        except (Exception, SystemExit) as error:
            raise _unreadable(f"sample {index}", task, error) from error


def seed_globals_for(key: Key, name: str, epoch: int, index: int) -> None:
    """Seed the global generators for one call of a user's function."""
    words = random.sample_words(random.fold_in(key, name), epoch, np.array([index], np.int64))
    random.seed_globals(words[0])


def brief(error: BaseException) -> str:
    """An error in one line, to be part of another message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _unreadable(what: str, task: Task, error: BaseException) -> RuntimeError:
    return RuntimeError(f"{what} (batch {task.batch} of epoch {task.epoch}) could not be read ({brief(error)})")


def _check_sendable(batch: Any) -> None:
    """Raise for what cannot be sent: the queue would drop it in a thread, and the loader would wait for ever."""
    for leaf in tree.leaves(batch):
        if not isinstance(leaf, _PLAIN):
            ForkingPickler.dumps(leaf)
