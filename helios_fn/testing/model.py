"""The plain model of a run: where it is after each iteration, in place and in bits."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from .. import driver, random
from ..types import Counters, Cursor, Observer, Reason
from .digests import Digests, differing, leaf_digests
from .folders import temporary_folder
from .laws import whole_run
from .trace import Job
from .verdicts import LawBroken

_SHOWN = 8


class Place(NamedTuple):
    """Where a run is after an iteration: its cursor and counters, and the leaves of its state (see `digests_of`)."""

    cursor: Cursor
    counters: Counters
    digests: Digests

    @classmethod
    def of(cls, state: Any) -> Place:
        """Where a run with this state is."""
        return cls(state.cursor, state.counters, digests_of(state))


@dataclasses.dataclass(frozen=True)
class Model:
    """What a run is, without any of its machinery: where each iteration leads, in place and in bits, and the end.

    Attributes:
        places: cursor and counters after each number of iterations.
        digests: the leaves of the state after each number of iterations, but for what validation found.
        reason: why the run ends.
    """

    places: list[Any]
    digests: list[Digests]
    reason: Reason

    @property
    def last(self) -> int:
        """The number of iterations of the whole run."""
        return len(self.places) - 1

    def check(self, at: Place, before: str = "") -> None:
        """Check that a run is where this one was after as many iterations, in place and in bits.

        Raises:
            LawBroken: it is not; ``before`` begins the message.
        """
        iteration = at.counters.iteration
        if iteration > self.last:
            raise LawBroken(
                f"{before}the run goes on in iteration {iteration}; without interruptions it ends after {self.last}"
            )
        if (at.cursor, at.counters) != self.places[iteration]:
            raise LawBroken(
                f"{before}after iteration {iteration} the run is at {at.cursor}, {at.counters}; without interruptions "
                f"at {self.places[iteration]}"
            )
        lines = differing(self.digests[iteration], at.digests)
        if lines:
            listed = "".join(f"\n  {line}" for line in lines[:_SHOWN])
            raise LawBroken(
                f"{before}after iteration {iteration} the state is not that of the run without interruptions:{listed}"
            )


def model_of(job: Job) -> Model:
    """One run that nothing interrupts, and where each of its iterations leads.

    Raises:
        LawBroken: the step is not pure.
        JobFailed: the job fails.
    """
    whole_run(job)  # tells what is wrong with it, if anything is
    states: list[Any] = []

    class Starting(Observer):
        def on_start(self, info: Any, state: Any) -> None:
            states.append(state)

    keywords = {**job.keywords, "observers": [*job.keywords.get("observers", ()), Starting()]}
    with temporary_folder() as folder, random.preserved_globals():
        placed = job.in_root(folder)
        run = driver.iterate(placed.step, placed.initial_state(), placed.new_loader(), placed.cfg, **keywords)
        try:
            while True:
                # As they are when all that is due has been done: a phase changes after observers have been told.
                states.append(next(run))
        except StopIteration as end:
            reason = end.value.reason
    return Model([(state.cursor, state.counters) for state in states], [digests_of(state) for state in states], reason)


def digests_of(state: Any) -> Digests:
    """The leaves of a state, but for what validation found, whose cadence may be another."""
    return leaf_digests(state.replace(validation=None))
