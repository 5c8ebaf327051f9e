"""The vocabulary: small immutable values and the protocols that modules meet by."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch

Tree: TypeAlias = Any
"""Any pytree: nested dicts, lists, tuples, NamedTuples and registered dataclasses of leaves."""

Key: TypeAlias = torch.Tensor
"""A random key: an int64 CPU tensor of shape (2,), see `helios_fn.random`."""

Scalar: TypeAlias = bool | int | float
Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
UnitName: TypeAlias = Literal["iteration", "epoch"]
RowKind: TypeAlias = Literal["train", "validation"]
ReductionName: TypeAlias = Literal["tree", "fold"]


class Cursor(NamedTuple):
    """The next micro-batch to consume.

    Always normalised: after the last batch of epoch e it reads ``(e + 1, 0)``, so ``epoch`` is the
    number of completed epochs. ``position`` is a stream's own position and ``None`` for map-style data.

    Example:
        >>> hf.Cursor(epoch=2, batch=5)
        Cursor(phase=0, epoch=2, batch=5, position=None)
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    position: Any = None


class Counters(NamedTuple):
    """What has been done: completed calls of ``step``, and micro-batches consumed by the whole job."""

    iteration: int = 0
    micro_step: int = 0


class Validation(NamedTuple):
    """What validation has found so far; written by the driver alone."""

    metrics: dict[str, torch.Tensor]
    cycles: int = 0
    best: float = float("inf")
    bad_cycles: int = 0


class MicroBatches(NamedTuple):
    """What a step receives when an iteration is made of more than one micro-batch.

    ``items`` are the micro-batches of this process, ``start`` the index of the first of them within
    the iteration, ``count`` the number that the whole job consumes in this iteration, and
    ``reduction`` the order in which their gradients are summed.
    """

    items: tuple[Any, ...]
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, of no use here
    reduction: ReductionName = "tree"


class Aux(NamedTuple):
    """What a ``loss_fn`` returns beside its loss.

    ``buffers`` are the new module buffers (``None``: unchanged), ``weight`` the number of samples or
    tokens that the loss is a mean over, ``metrics`` a flat mapping of names to scalars, each a mean
    over the same weight.
    """

    buffers: Any = None
    weight: Any = 1
    metrics: Mapping[str, Any] | None = None


class Share(NamedTuple):
    """The part of every iteration that one process handles: ``rank`` of ``world`` equal processes.

    An iteration has ``micro_batches`` of them; by default one, and one process handles it.
    """

    unit: UnitName = "iteration"
    micro_batches: int = 1
    rank: int = 0
    world: int = 1


class Delivery(NamedTuple):
    """One iteration's data for one process: its micro-batches, and the cursor after the iteration."""

    items: tuple[Any, ...]
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, of no use here
    cursor: Cursor


class Feed(Protocol):
    """An open reader: deliveries in order. Closing it keeps the workers of its source alive."""

    def __iter__(self) -> Iterator[Delivery]: ...
    def __next__(self) -> Delivery: ...
    def close(self) -> None: ...


@runtime_checkable
class Source(Protocol):
    """Where batches come from: a pure function of (key, cursor), opened at any position.

    ``batches_per_epoch`` is ``None`` for a stream. ``describe`` returns the facts that decide the
    bytes of the batches (dataset length, batch size, order, ...); they are stored in each checkpoint
    and a resume with other values is refused.
    """

    @property
    def batches_per_epoch(self) -> int | None: ...
    def open(self, cursor: Cursor, *, key: Key, share: Share) -> Feed: ...
    def describe(self) -> dict[str, Json]: ...
    def close(self) -> None: ...


class Row(NamedTuple):
    """One line of a log: the metrics of one iteration.

    ``time`` (seconds since the epoch) and ``observed`` are observations: what was seen around the training. They alone
    differ between two equal runs, and nothing may compute with them. In train rows ``observed`` may hold

    - ``samples_per_second`` (of the whole job; left out where batches do not tell their size) and
      ``micro_batches_per_second``;
    - where the seconds since the train row before went: ``data_wait``, ``step``, ``validation``, ``checkpoint`` (for as
      long as training waited for it) and ``other``;
    - ``peak_memory`` in bytes: of the accelerator's tensors, else of the process.
    """

    kind: RowKind
    iteration: int
    micro_step: int
    epoch: int
    metrics: Mapping[str, float]
    time: float
    observed: Mapping[str, float] = {}


class Fingerprint(NamedTuple):
    """Digests of one iteration: of each leaf of the state after it, and of the batch that its step received.

    The state is the complete one, which a checkpoint of this iteration would hold. Of an iteration of several
    micro-batches ``batch`` has all, whichever process handled them, by their number within the iteration, as in
    ``micro-batch 3[0]``. Sharded leaves, of which each process has a part, are left out. ``time`` is an
    observation, as in a `Row`.
    """

    iteration: int
    micro_step: int
    epoch: int
    state: Mapping[str, str]
    batch: Mapping[str, str]
    time: float

    @property
    def kind(self) -> Literal["fingerprint"]:
        """What a log calls it."""
        return "fingerprint"


class RunInfo(NamedTuple):
    """What sinks and observers are told when a run starts (or goes on).

    ``log_dir`` is chosen at iteration 0, is the same for all later starts of the run, and is ``None``
    for a run without a root. ``superseded`` is the folder that keeps what a sink cuts off when an
    older checkpoint is resumed on purpose; ``None`` where the cut rows will be written again. ``rank`` of ``processes``
    is this process; observers are told on all of them, sinks on rank 0 alone.
    """

    name: str
    unit: UnitName
    total: float
    micro_batches: int
    batches_per_epoch: int | None
    start_iteration: int = 0
    start_epoch: int = 0
    start_batch: int = 0
    log_dir: Path | None = None
    superseded: Path | None = None
    rank: int = 0
    processes: int = 1


class Sink(Protocol):
    """A receiver of log rows that can be cut back to an earlier point.

    ``open`` is called with the ``mark`` that the resumed checkpoint recorded (``None`` at a fresh start): the
    sink drops all it holds beyond the mark. A rollback closes and opens again, with an older mark.
    ``flush`` makes everything written so
    far durable and returns the mark (any JSON value) for the checkpoint being written. ``name`` is
    unique among the sinks of a run. A sink that keeps fingerprints has a method ``write_fingerprint(Fingerprint)`` too.

    A sink may also look at states: it then has ``look_every``, an `hf.Every` (or ``None``), and
    ``look(state) -> write``. At that cadence ``look`` takes from the state what it wants, changing nothing, and
    returns a function without arguments, which writes it once the iteration is complete, after its rows. The state
    must not be kept. Process 0 alone calls it: of a sharded leaf it sees the part of this process.
    """

    name: str

    def open(self, info: RunInfo, mark: Json) -> None: ...
    def write(self, row: Row) -> None: ...
    def flush(self) -> Json: ...
    def close(self) -> None: ...


class Observer:
    """A reader of events; derive and override what is of interest. Observers never change training.

    The order of calls: ``on_start``, ``on_checkpoint`` for the first state, then per iteration
    ``on_iteration``, ``on_row`` (when a row is logged), ``on_validation_batch`` (per batch, where the
    validation reports it), ``on_validation``; last ``on_end``, also after a failure (then ``reason`` is ``None``).
    ``on_checkpoint`` comes once for each checkpoint, in order, when it is durable: with ``async_save`` at the end of
    one of the iterations that follow, the last ones before ``on_end``. All are called in the thread that trains, and
    in every process if there are several; but rank 0 alone saves a state that is not sharded, and hears of it.

    A class whose ``on_iteration`` never keeps the state that it is shown says ``keeps_states = False``: the next step
    may then write into that state's memory, where ``RunConfig.donate`` allows it.
    """

    keeps_states = True

    def on_start(self, info: RunInfo, state: Any) -> None: ...
    def on_iteration(self, state: Any) -> None: ...
    def on_row(self, row: Row) -> None: ...
    def on_validation_batch(self, done: int, total: int | None) -> None: ...
    def on_validation(self, state: Any) -> None: ...
    def on_checkpoint(self, path: Path, state: Any) -> None: ...
    def on_end(self, state: Any, reason: Reason | None) -> None: ...


class Reason(enum.Enum):
    """Why a run ended. The values are the messages that users read."""

    TOTAL = "the total was reached"
    EARLY_STOP = "validation stopped improving"
    SHOULD_STOP = "should_stop asked for it"
    NON_FINITE = "the loss or a gradient was not finite"
    SIGNAL = "a signal asked the process to stop; run the same line again to go on"
    TIME = "the time limit of this launch was reached; run the same line again to go on"

    @property
    def finished(self) -> bool:
        """Whether running again would train nothing more.

        Example:
            >>> hf.Reason.TOTAL.finished, hf.Reason.TIME.finished
            (True, False)
        """
        return self not in (Reason.SIGNAL, Reason.TIME, Reason.NON_FINITE)


class Result(NamedTuple):
    """The outcome of a run: the final state, why it ended, and ``should_stop``'s own words if any."""

    state: Any
    reason: Reason
    message: str = ""

    @property
    def exit_status(self) -> int:
        """A status for ``sys.exit`` that tells a scheduler whether to start the same line again.

        0: the run is finished. 75: it stopped early, by a signal or its time limit, with its last state on disk;
        start it again (``EX_TEMPFAIL`` of
        [sysexits](https://man.freebsd.org/cgi/man.cgi?query=sysexits): "the user is invited to retry later").
        1: it ended for another reason, as it does when `RunFailed` is raised.
        """
        if self.reason in (Reason.SIGNAL, Reason.TIME):
            return EX_TEMPFAIL
        return 0 if self.reason.finished else 1


EX_TEMPFAIL = 75  # not from os, which has it on Unix only

Step: TypeAlias = Callable[[Any, Any], Any]
"""``step(state, batch) -> state``: pure, deterministic, structure preserving."""
