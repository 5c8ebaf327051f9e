"""Reading a batch: a pure function of (key, epoch, batch, indices), the same in any process."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from .. import random
from ..frames import focused
from ..types import Key
from .columns import Empty, Select, draws_nothing, select_from
from .plan import Task
from .shared import Blocks

Collate: TypeAlias = Callable[[list[Any]], Any]
Transform: TypeAlias = Callable[[Any, np.random.Generator], Any]

_DTYPE = operator.attrgetter("dtype")


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
    the global generators of torch, NumPy and `random`, which are seeded before every call of the user's.
    """

    def __init__(
        self, dataset: Any, *, collate: Collate | None, transform: Transform | None, seed_globals: bool
    ) -> None:
        self._dataset = dataset
        self._collate: Collate = default_collate if collate is None else collate
        self._transform = transform
        self._keyed = isinstance(dataset, KeyedDataset)
        drawless = transform is None and draws_nothing(dataset)
        # torch's own collate function draws nothing.
        self._seeds_collate = seed_globals and self._collate is not default_collate
        self._seeds_samples = seed_globals and not drawless
        self.seeds_globals = self._seeds_collate or self._seeds_samples
        # The first read finds out how: a reader is sent to workers, and functions made here cannot be.
        self._may_select = drawless and self._collate is default_collate
        self._select: Select | None = None
        self._rng: np.random.Generator | None = None
        self._blocks: Blocks | None = None

    def read(self, task: Task) -> Any:
        """The batch of a task.

        Raises:
            RuntimeError: the dataset, the transform or the collate function raised; names the sample.
        """
        if self._may_select:
            self._select, self._may_select = select_from(self._dataset), False
        if self._select is not None:
            return self._selected(self._select, task)
        if self._seeds_samples or self._keyed or self._transform is not None:
            samples = self._random_samples(task)
        elif hasattr(self._dataset, "__getitems__"):
            samples = self._many(task)
        else:
            samples = self._plain_samples(task)
        if self._seeds_collate:
            seed_globals_for(_key_of(task), "collate", task.epoch, task.batch)
        try:
            if self._blocks is not None and self._collate is default_collate:
                return collate_into(self._blocks.empty, samples)
            return self._collate(samples)
        except Exception as error:
            raise RuntimeError(
                f"the samples of batch {task.batch} of epoch {task.epoch} could not be made into a batch "
                f"({brief(error)}): give the loader a collate function that fits them"
            ) from error

    def __getitem__(self, task: Task) -> Any:
        """`read` for a worker: ready to be sent; failures come back as values, and workers live on."""
        if self._blocks is None:
            self._blocks = Blocks()
        try:
            self._blocks.begin()
            return self._blocks.pack(self.read(task))
        except Exception as error:
            info = get_worker_info()
            where = f"in worker {info.id}: " if info is not None else ""
            return Failure(f"{where}{error}", "".join(traceback.format_exception(focused(error))))

    def _selected(self, select: Select, task: Task) -> Any:
        try:
            return select(task.indices, None if self._blocks is None else self._blocks.empty)
        except Exception as error:
            raise _unreadable(f"the samples {task.indices.tolist()}", task, error) from error

    def _many(self, task: Task) -> list[Any]:
        indices = task.indices.tolist()
        try:
            return list(self._dataset.__getitems__(indices))
        except (Exception, SystemExit) as error:
            raise _unreadable(f"the samples {indices}", task, error) from error

    def _plain_samples(self, task: Task) -> list[Any]:
        dataset, samples = self._dataset, []
        index = -1
        try:
            for index in task.indices.tolist():
                samples.append(dataset[index])
        # SystemExit too: a dataset that exits would take its worker along without a word.
        except (Exception, SystemExit) as error:
            raise _unreadable(f"sample {index}", task, error) from error
        return samples

    def _random_samples(self, task: Task) -> list[Any]:
        words = random.sample_words(_key_of(task), task.epoch, task.indices).tolist()
        dataset, transform, samples = self._dataset, self._transform, []
        index = -1
        try:
            for index, row in zip(task.indices.tolist(), words, strict=True):
                if self._seeds_samples:
                    random.seed_globals(row)
                if not self._keyed and transform is None:
                    samples.append(dataset[index])
                    continue
                rng = self._rng = random.sample_generator(row, reuse=self._rng)
                sample = dataset.keyed_item(index, rng) if self._keyed else dataset[index]
                samples.append(sample if transform is None else transform(sample, rng))
        except (Exception, SystemExit) as error:
            raise _unreadable(f"sample {index}", task, error) from error
        return samples


def collate_into(empty: Empty, samples: list[Any]) -> Any:
    """torch's ``default_collate``, with tensors stacked into memory that ``empty`` gives."""

    def stack(tensors: Any, *, collate_fn_map: Any) -> torch.Tensor:
        first = tensors[0]
        plain = type(first) is torch.Tensor and first.layout is torch.strided and not first.is_nested
        # Mixed dtypes are promoted, as in the main process, where memory that is given would have them cast.
        if plain and first.device.type == "cpu" and len(set(map(_DTYPE, tensors))) == 1:
            try:
                return torch.stack(tensors, 0, out=empty((len(tensors), *first.shape), first.dtype))
            except RuntimeError:
                pass  # autograd has no way to write there; or the shapes differ, which is said below
        stacked: torch.Tensor = default_collate_fn_map[torch.Tensor](tensors, collate_fn_map=collate_fn_map)
        return stacked

    return collate(samples, collate_fn_map={**default_collate_fn_map, torch.Tensor: stack})


def _key_of(task: Task) -> Key:
    return torch.tensor(task.key, dtype=torch.int64, device="cpu")


def seed_globals_for(key: Key, name: str, epoch: int, index: int) -> None:
    """Seed the global generators for one call of a user's function."""
    words = random.sample_words(random.fold_in(key, name), epoch, np.array([index], np.int64))
    random.seed_globals(words[0])


def brief(error: BaseException) -> str:
    """An error in one line, to be part of another message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _unreadable(what: str, task: Task, error: BaseException) -> RuntimeError:
    return RuntimeError(f"{what} (batch {task.batch} of epoch {task.epoch}) could not be read ({brief(error)})")
