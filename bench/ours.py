"""Our side of the jobs in `loops`: the same feed as a source of batches, through ``hf.run``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helios_fn as hf
from helios_fn.types import Delivery

from .loops import LOG_EVERY, LOSS, Feed, Job


class Fed:
    """A source of the driver's protocol that hands out a `Feed`, one epoch long."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    @property
    def batches_per_epoch(self) -> int:
        """All there is."""
        return len(self.feed)

    def open(self, cursor: hf.Cursor, *, key: Any, share: Any) -> _Reader:
        """From the start; nothing here is resumed."""
        return _Reader(self.feed)

    def describe(self) -> dict[str, Any]:
        """What decides the batches."""
        return {"length": len(self.feed)}

    def close(self) -> None:
        """Nothing to close."""


class _Reader:
    def __init__(self, feed: Feed) -> None:
        self._deliveries = _deliveries(feed)

    def __iter__(self) -> Iterator[Delivery]:
        return self._deliveries

    def __next__(self) -> Delivery:
        return next(self._deliveries)

    def close(self) -> None:
        self._deliveries.close()


def _deliveries(feed: Feed) -> Any:
    for batch, item in enumerate(feed, 1):
        yield Delivery((item,), 0, 1, hf.Cursor(0, 0, batch) if batch < len(feed) else hf.Cursor(0, 1, 0))


def train(job: Job, step: Any, state: Any) -> None:
    """Run the step over the job's feed. Everything that is on by default stays on."""
    sinks: list[Any] = [hf.sinks.TensorBoard()] if job.tensorboard else []
    if job.text:
        sinks.append(hf.sinks.JsonLines())
    config = hf.RunConfig(
        unit="iteration",
        total=len(job.feed),
        log_every=LOG_EVERY if sinks else None,
        progress=job.bar,
        root=job.folder if sinks else None,
    )
    hf.run(step, state, Fed(job.feed), config, sinks=sinks)


def noop_step(state: Any, batch: Any) -> Any:
    """A step that does nothing but report a constant."""
    return state.replace(metrics={"loss": LOSS})


def bare_noop(job: Job, state: Any) -> None:
    """The loop by hand around `noop_step`."""
    for batch in job.feed:
        state = noop_step(state, batch)
