"""The loader: a map-style dataset as batches that can be read from any position at once."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from torch.utils.data import IterableDataset

from ..schedule import Assignment, assignments
from ..types import Cursor, Feed, Json, Key, Share
from .columns import Table
from .feed import Engine, LoaderFeed
from .order import CustomBatches, Order
from .plan import Plan, make_plan, portion, tasks
from .pool import PoolOptions
from .sampling import Collate, KeyedDataset, Reader, Transform

_POSITIONS = operator.attrgetter("positions")
_ALONE = Share()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loader:
    """Batches of a map-style dataset, as a pure function of (key, position).

    Laws: each epoch visits each sample exactly once (orders of one's own aside); the bytes of a batch
    depend on the key, its epoch and its samples, never on workers, prefetching, the position where
    reading started, or the number of processes; the global random state of the main process is as
    before. Opening takes constant time and memory at any position of a dataset of any size; orders of
    one's own are replayed from their epoch's start.

    A sample may draw random numbers in two ways. Draws from the global generators of torch, NumPy and
    `random` are seeded per sample (and per batch for ``collate``) while ``seed_globals`` is on. Or a
    generator is handed over: to ``transform(sample, rng)``, or to the dataset's own
    ``keyed_item(index, rng)`` where it has one (see `KeyedDataset`).

    A loader feeds one reader at a time: opening it again ends the feed before, and its workers go on
    at the new position without being restarted.

    Datasets that are tensors in memory are read a batch at a time, with the same bytes, where there is
    neither ``transform`` nor ``collate``: a `TensorDataset`, a tensor or array whose rows are the
    samples, a dict of such columns by name, and a `Subset` of one of these. ``workers=0`` is then the
    fastest. With workers, batches come back through shared memory that is used again once nothing
    refers to it: keep them for as long as you like.

    Args:
        dataset: has ``__len__`` and ``__getitem__`` (or ``keyed_item``); or a dict of columns.
            ``__getitems__(indices)``, if there is one, reads a whole batch where samples get no
            randomness (``seed_globals=False`` and no ``transform``).
        batch_size: samples in a batch; the last one of an epoch may be shorter. ``None`` only with an
            order that gives whole batches.
        shuffle: another order in every epoch; default true unless ``order`` is given.
        order: `Shuffled`, `Sequential`, `CustomOrder`, `CustomBatches`, any `Order`, or a function
            ``(key, epoch, n) -> indices``.
        drop_last: leave out the last batch of an epoch where it is shorter.
        workers: how many processes read samples; 0 reads them in the main process.
        collate: makes a batch of a list of samples; default torch's ``default_collate``.
        transform: ``transform(sample, rng)``, applied to every sample, ``rng`` a NumPy generator that is
            valid during the call.
        seed_globals: seed the global generators for every sample. ``False`` promises that neither
            dataset nor collate draws from them, and saves some tens of microseconds per sample. Lists,
            tuples, ranges, datasets of tensors and torch's own collate function are known to draw nothing.
        pin_memory: copy batches into page-locked memory; ignored without CUDA.
        prefetch: batches that each worker reads ahead.
        multiprocessing_context: how workers start: ``"fork"``, ``"spawn"``, ``"forkserver"`` or a context.
        worker_init: ``worker_init(worker)``, called once in each worker before anything is read.
        samples: use only the first so many samples of the dataset; see `take`.
        batches: use only the first so many batches (a float: that fraction of them) of each epoch; see
            `limit`.

    Raises:
        ValueError: a value is out of range, or there is not one batch in an epoch.
        TypeError: the dataset or another argument is of a kind that cannot be read.

    Example:
        >>> loader = hf.Loader(torch.arange(10), batch_size=4, shuffle=False)
        >>> [batch.tolist() for batch in loader.epoch(hf.random.key(0))]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        >>> shuffled = loader.replace(shuffle=True)
        >>> sorted(torch.cat([*shuffled.epoch(hf.random.key(0), 3)]).tolist()) == list(range(10))
        True
    """

    dataset: Any
    batch_size: int | None
    _: dataclasses.KW_ONLY
    shuffle: bool | None = None
    order: Order | CustomBatches | Callable[..., Any] | None = None
    drop_last: bool = False
    workers: int = 0
    collate: Collate | None = None
    transform: Transform | None = None
    seed_globals: bool = True
    pin_memory: bool = False
    prefetch: int = 2
    multiprocessing_context: Any = None
    worker_init: Callable[[int], None] | None = None
    samples: int | None = None
    batches: float | None = None
    _plan: Plan = dataclasses.field(init=False)
    _engine: Engine = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        dataset = _as_dataset(self.dataset)
        length = _dataset_length(dataset, keyed=self.seed_globals or self.transform is not None)
        if self.samples is not None:
            _check_count("samples", self.samples, 1)
            length = min(length, self.samples)
        plan = make_plan(
            length,
            self.batch_size,
            shuffle=self.shuffle,
            order=self.order,
            drop_last=self.drop_last,
            limit=self.batches,
        )
        _check_count("workers", self.workers, 0)
        _check_count("prefetch", self.prefetch, 1)
        for name in ("collate", "transform", "worker_init"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function, got {value!r}")
        engine = Engine(
            Reader(dataset, collate=self.collate, transform=self.transform, seed_globals=self.seed_globals),
            PoolOptions(self.workers, self.prefetch, self.multiprocessing_context, self.pin_memory, self.worker_init),
        )
        object.__setattr__(self, "_plan", plan)
        object.__setattr__(self, "_engine", engine)
        weakref.finalize(self, engine.close)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in every epoch."""
        return self._plan.batches

    @property
    def samples_per_epoch(self) -> int | None:
        """The number of samples in every epoch; ``None`` where an order of one's own gives whole batches."""
        return self._plan.samples

    def __len__(self) -> int:
        return self._plan.batches

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "a Loader keeps no position or seed of its own: read one epoch with `for batch in loader.epoch(key, 0)`"
        )

    def open(self, cursor: Cursor, *, key: Key, share: Share = _ALONE) -> Feed:
        """A feed that starts at ``cursor``, for the part of each iteration that ``share`` names.

        For a loop of your own, ``loader.open(state.cursor, key=state.key)`` is enough: one process, and iterations of
        one micro-batch. Each item of the feed holds ``items`` (the micro-batches), ``count`` (by which
        ``counters.micro_step`` grows), and ``cursor`` (the next state's).

        Raises:
            ValueError: the cursor does not belong to this loader.
            RuntimeError: (also while reading) a sample could not be read, or a worker is gone. The loader
                can be opened again.
        """
        batches = self._plan.batches
        if cursor.position is not None or not 0 <= cursor.batch < batches:
            raise ValueError(f"{cursor} is not a position in epochs of {batches} batches: it belongs to another loader")

        return self._start(key, cursor.phase, assignments(cursor, share, batches))

    def epoch(self, key: Key, epoch: int = 0) -> Iterator[Any]:
        """The batches of one epoch, such as for validation: the same ones whenever the arguments are the same."""
        start, share, batches = Cursor(epoch=epoch), Share("epoch"), self._plan.batches
        feed = self._start(key, 0, itertools.islice(assignments(start, share, batches), batches))
        try:
            for delivery in feed:
                yield from delivery.items
        finally:
            feed.close()

    def replace(self, **changes: Any) -> Loader:
        """A loader of its own with some arguments changed."""
        return dataclasses.replace(self, **changes)

    def take(self, samples: int) -> Loader:
        """A loader of the first ``samples`` samples of the dataset (all of them, if it has fewer)."""
        return self.replace(samples=samples if self.samples is None else min(samples, self.samples))

    def limit(self, batches: float) -> Loader:
        """A loader whose epochs end after ``batches`` batches, or after that fraction of them (at least one).

        With a shuffled order, which samples these are differs from epoch to epoch.

        Example:
            >>> loader = hf.Loader(torch.arange(100), batch_size=10)
            >>> len(loader.limit(0.25)), len(loader.limit(3))
            (2, 3)
        """
        return self.replace(batches=batches)

    def overfit(self, batches: float) -> Loader:
        """A loader of the same first batches (so many, or a float's fraction of them), unshuffled, in every epoch.

        Example:
            >>> tiny = hf.Loader(torch.arange(100), batch_size=2).overfit(2)
            >>> [batch.tolist() for batch in tiny.epoch(hf.random.key(0), epoch=7)]
            [[0, 1], [2, 3]]
        """
        if self.batch_size is None:
            raise ValueError("overfit needs a loader with a batch_size")
        first = portion(batches, self._plan.batches) if type(batches) is float else batches
        _check_count("batches", first, 1)
        return self.replace(shuffle=False, order=None, batches=None).take(int(first) * self.batch_size)

    def describe(self) -> dict[str, Json]:
        """The facts that decide the bytes of the batches, as plain JSON values."""
        return {
            "kind": "map",
            "length": self._plan.n,
            "batch_size": self.batch_size,
            "order": self._plan.order.name,
            "drop_last": self.drop_last,
            "batches_per_epoch": self._plan.batches,
        }

    def close(self) -> None:
        """End the open feed and stop the workers. Opening the loader again starts new ones."""
        self._engine.close()

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.describe().items() if name != "kind")
        return f"{type(self).__name__}({facts}, workers={self.workers})"

    def __getstate__(self) -> dict[str, Any]:
        # A loader travels to another process as its arguments; workers and feeds stay behind.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def _start(self, key: Key, phase: int, assigned: Iterable[Assignment]) -> LoaderFeed:
        # The tasks run ahead of the deliveries by whatever the workers prefetch.
        delivered, planned = itertools.tee(assigned)
        positions = itertools.chain.from_iterable(map(_POSITIONS, planned))
        return self._engine.start(delivered, tasks(self._plan, key, phase, positions), owner=self)


def _as_dataset(dataset: Any) -> Any:
    """A dict of columns as a dataset; others, such as a dict of samples by index, as they are."""
    is_table = type(dataset) is dict and any(isinstance(name, str) for name in dataset)
    return Table(dataset) if is_table else dataset


def _dataset_length(dataset: Any, *, keyed: bool) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"a Loader needs a dataset with __len__ and __getitem__, got {type(dataset).__name__}: "
            "read it as a stream, hf.Stream(open, batch_size)"
        )
    if not (hasattr(dataset, "__getitem__") or isinstance(dataset, KeyedDataset)):
        if not hasattr(dataset, "__getitems__"):
            raise TypeError(f"{type(dataset).__name__} has no __getitem__: the loader cannot read its samples")
        if keyed:
            raise TypeError(
                f"{type(dataset).__name__} has __getitems__ only, and samples that are read together cannot be seeded "
                "one by one: add __getitem__, or set seed_globals=False if it draws no random numbers"
            )
    length = len(dataset)
    if length < 1:
        raise ValueError(f"the dataset ({type(dataset).__name__}) is empty")
    return length


def _check_count(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
