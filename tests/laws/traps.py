"""Faults of the user's own code: one exception at one place of a job, once."""

from __future__ import annotations

import dataclasses

import helios_fn as hf
from helios_fn.testing import Job

PLACES = (
    "step",
    "loader",
    "validate",
    "advance",
    "should_stop",
    "metadata",
    "sink.write before",
    "sink.write after",
    "sink.flush before",
    "sink.flush after",
    "on_iteration",
    "on_row",
    "on_validation_batch",
    "on_validation",
    "on_checkpoint",
    "on_end",
)


class Sprung(Exception):
    """What a trap raises."""


class Trap(hf.Observer):
    """Raises once: at the first passing of ``place`` in or after ``iteration``.

    ``sprung`` is the number of the last iteration whose step had been done by then, -1 until then.
    """

    def __init__(self, place: str, iteration: int) -> None:
        self.place, self.iteration = place, iteration
        self.stepped = 0
        self.sprung = -1

    def passing(self, place: str) -> None:
        if place == self.place and self.sprung < 0 and self.stepped >= self.iteration:
            self.sprung = self.stepped
            raise Sprung(place)

    def set_in(self, job: Job) -> Job:
        """The job with everything of the user's that the driver calls passing by the trap."""
        keywords = {
            **job.keywords,
            "observers": [self],
            "sinks": [PassingSink(self)],
            "should_stop": lambda state: self.passing("should_stop"),
            "checkpoint_metadata": lambda state: self.passing("metadata") or "",
        }
        if "validate" in keywords and self.place == "validate":
            # Only then: a Validator that hides behind a function reports no batches.
            keywords["validate"] = self.before("validate", keywords["validate"])
        return dataclasses.replace(
            job, step=self.before("step", job.step), loader=lambda: self.loader(job.loader()), keywords=keywords
        )

    def before(self, place, function):
        def passing_by(*arguments):
            self.passing(place)
            return function(*arguments)

        return passing_by

    def loader(self, loader):
        source = hf.data.as_source(loader)
        if isinstance(source, hf.Phases):
            source.should_advance = self.before("advance", source.should_advance)
            return source
        return PassingSource(source, self)

    def on_iteration(self, state) -> None:
        self.stepped = state.counters.iteration
        self.passing("on_iteration")

    def on_row(self, row) -> None:
        self.passing("on_row")

    def on_validation_batch(self, done, total) -> None:
        self.passing("on_validation_batch")

    def on_validation(self, state) -> None:
        self.passing("on_validation")

    def on_checkpoint(self, path, state) -> None:
        self.passing("on_checkpoint")

    def on_end(self, state, reason) -> None:
        self.passing("on_end")


class PassingSink(hf.sinks.JsonLines):
    """A log of its own that passes by a trap before and after each row."""

    def __init__(self, trap: Trap) -> None:
        super().__init__(name="passing")
        self.trap = trap

    def write(self, row) -> None:
        self.trap.passing("sink.write before")
        super().write(row)
        self.trap.passing("sink.write after")

    def flush(self):
        self.trap.passing("sink.flush before")
        mark = super().flush()
        self.trap.passing("sink.flush after")
        return mark


class PassingSource:
    """A source whose feeds pass by a trap before each delivery."""

    def __init__(self, source, trap: Trap) -> None:
        self.source, self.trap = source, trap
        self.batches_per_epoch = source.batches_per_epoch
        self.describe, self.close = source.describe, source.close

    def open(self, cursor, *, key, share):
        return PassingFeed(self.source.open(cursor, key=key, share=share), self.trap)


class PassingFeed:
    def __init__(self, feed, trap: Trap) -> None:
        self.feed, self.trap = feed, trap
        self.close = feed.close

    def __iter__(self):
        return self

    def __next__(self):
        self.trap.passing("loader")
        return next(self.feed)
