"""The plain model of a run: where it is after each iteration, in place and in bits."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..types import Observer, Reason
from .digests import Digests, leaf_digests
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
    """One run that nothing interrupts, and where each of its iterations leads."""
    states: list[Any] = []

    class Noting(Observer):
        def on_start(self, info: Any, state: Any) -> None:
            states.append(state)

        def on_iteration(self, state: Any) -> None:
            states.append(state)

    keywords = {**job.keywords, "observers": [*job.keywords.get("observers", ()), Noting()]}
    trace = whole_run(dataclasses.replace(job, keywords=keywords))
    assert trace.reason is not None
    return Model(
        [(state.cursor, state.counters) for state in states], [digests_of(state) for state in states], trace.reason
    )


def digests_of(state: Any) -> Digests:
    """The leaves of a state, but for what validation found, whose cadence may be another."""
    return leaf_digests(state.replace(validation=None))
