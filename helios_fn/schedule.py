"""Counting, as pure total functions: what an iteration consumes, what is due after it, when a run is finished.

Nearly every fault of training loops is a fault in counting, so all of it is here, none elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from .config import Every, RunConfig
from .types import Counters, Cursor, Reason, Share


class Located(Protocol):
    """Whatever has a cursor and counters: a `TrainState`, or a `Point`."""

    @property
    def cursor(self) -> Cursor:
        """The next micro-batch to consume."""
        ...

    @property
    def counters(self) -> Counters:
        """What has been done."""
        ...


class Point(NamedTuple):
    """A point in a run."""

    cursor: Cursor
    counters: Counters


class Assignment(NamedTuple):
    """What one process fetches for one iteration.

    ``positions`` are the ``(epoch, batch)`` of its micro-batches, ``start`` the index of the first of
    them within the iteration, ``count`` the number of micro-batches of the whole job in this
    iteration, ``cursor`` the normalised cursor after the iteration.
    """

    positions: tuple[tuple[int, int], ...]
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, of no use here
    cursor: Cursor


class Due(NamedTuple):
    """What is to be done after an iteration."""

    log: bool
    validate: bool
    checkpoint: bool
    fingerprint: bool = False


class Horizon(NamedTuple):
    """The first iteration and the first epoch count at which anything can be due."""

    iteration: float
    epoch: float


def share_of(cfg: RunConfig, rank: int = 0, world: int = 1) -> Share:
    """The part of each iteration that process ``rank`` of ``world`` handles.

    Raises:
        ValueError: there are more processes than micro-batches in an iteration.
    """
    default = world * (cfg.accumulation_steps if cfg.unit == "iteration" else 1)
    micro_batches = default if cfg.micro_batches is None else cfg.micro_batches
    if world > micro_batches:
        raise ValueError(
            f"{world} processes cannot share {micro_batches} micro-batches per iteration: "
            f"start at most {micro_batches} processes or set micro_batches to at least {world}"
        )
    return Share(cfg.unit, micro_batches, rank, world)


def rank_slice(count: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous, balanced half-open range of ``range(count)`` that belongs to ``rank``."""
    return count * rank // world, count * (rank + 1) // world


def assign(cursor: Cursor, share: Share, batches_per_epoch: int) -> Assignment:
    """What the iteration that starts at ``cursor`` consumes.

    In the iteration unit it takes ``share.micro_batches`` micro-batches, across an epoch's end where
    need be; in the epoch unit the last iteration of an epoch takes what is left.

    Example:
        >>> from helios_fn.schedule import assign
        >>> from helios_fn.types import Share
        >>> assign(hf.Cursor(epoch=0, batch=8), Share("iteration", micro_batches=4), batches_per_epoch=10).cursor
        Cursor(phase=0, epoch=1, batch=2, position=None)
    """
    count = share.micro_batches
    if share.unit == "epoch":
        count = min(count, batches_per_epoch - cursor.batch)
    low, high = rank_slice(count, share.rank, share.world)
    positions = tuple(
        (cursor.epoch + at // batches_per_epoch, at % batches_per_epoch)
        for at in range(cursor.batch + low, cursor.batch + high)
    )
    epochs, batch = divmod(cursor.batch + count, batches_per_epoch)
    return Assignment(positions, low, count, Cursor(cursor.phase, cursor.epoch + epochs, batch))


def assignments(cursor: Cursor, share: Share, batches_per_epoch: int) -> Iterator[Assignment]:
    """The assignments of all iterations from ``cursor`` on, without end."""
    while True:
        assignment = assign(cursor, share, batches_per_epoch)
        yield assignment
        cursor = assignment.cursor


def advance(counters: Counters, count: int) -> Counters:
    """The counters after an iteration that consumed ``count`` micro-batches."""
    return Counters(counters.iteration + 1, counters.micro_step + count)


def next_phase(cursor: Cursor) -> Cursor:
    """The start of the next phase. An epoch that is cut short counts as one.

    It does so for checkpoints and totals that count epochs. Logging and validation by epochs come before the
    phase changes, so they see complete epochs only.
    """
    return Cursor(cursor.phase + 1, cursor.epoch + (cursor.batch > 0), 0)


def due(before: Located, after: Located, cfg: RunConfig) -> Due:
    """What is due at ``after`` that was not at ``before``: each cadence fires when its count passes a multiple.

    Depends on nothing but the two points and the cadences, so a resumed run finds the same things
    due as one that never stopped.
    """
    return Due(
        crossed(before, after, cfg.cadence("log_every")),
        crossed(before, after, cfg.cadence("validate_every")),
        crossed(before, after, cfg.cadence("checkpoint_every")),
        crossed(before, after, cfg.cadence("fingerprint_every")),
    )


def crossed(before: Located, after: Located, cadence: Every | None) -> bool:
    """Whether the count of ``cadence`` has passed a multiple between two points; never where there is no cadence."""
    return cadence is not None and _count(after, cadence) // cadence.n > _count(before, cadence) // cadence.n


def horizon(at: Located, cfg: RunConfig, more: Iterable[Every] = ()) -> Horizon:
    """The first counts after ``at`` at which `due` or `finished` can answer anything but no, or one of ``more`` fires.

    The driver compares two integers with it instead of asking after every iteration.
    """
    cadences = [cfg.cadence("log_every"), cfg.cadence("validate_every"), cfg.cadence("checkpoint_every"), *more]
    cadences.append(cfg.cadence("fingerprint_every"))
    ends = {"iteration": math.inf, "epoch": math.inf, cfg.unit: cfg.units}
    for cadence in cadences:
        if cadence is not None:
            following = (_count(at, cadence) // cadence.n + 1) * cadence.n
            ends[cadence.unit] = min(ends[cadence.unit], following)
    return Horizon(ends["iteration"], ends["epoch"])


def finished(state: Any, cfg: RunConfig) -> Reason | None:
    """Whether a state has reached the end that the configuration sets, and which."""
    if cfg.early_stop is not None and state.validation.bad_cycles >= cfg.early_stop.cycles:
        return Reason.EARLY_STOP
    done = state.counters.iteration if cfg.unit == "iteration" else state.cursor.epoch
    return Reason.TOTAL if done >= cfg.units else None


def _count(at: Located, cadence: Every) -> int:
    return at.counters.iteration if cadence.unit == "iteration" else at.cursor.epoch
