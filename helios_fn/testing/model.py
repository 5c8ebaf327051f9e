"""The plain model of a run: where it is after each iteration, in place and in bits."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import driver, random
from ..types import Observer, Reason
from .digests import Digests, leaf_digests
from .folders import temporary_folder
from .laws import whole_run
from .trace import Job


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
