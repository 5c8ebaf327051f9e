"""Where two runs part, from what they have left behind."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from ..checkpoint import Checkpoint
from ..driver.record import differences
from ..types import Row
from .evidence import By, Evidence, Known, gather

Culprit: TypeAlias = Literal["batch", "state", "validation"]
_PLACEMENT = ("root", "resume", "progress", "async_save")


class Witness(NamedTuple):
    """An iteration at which two runs were compared, and by what."""

    iteration: int
    by: By

    def __str__(self) -> str:
        return f"iteration {self.iteration} ({self.by})"


class MetricPair(NamedTuple):
    """A metric that differs: the kind of its row, its name, and both values; ``None`` where a row lacks it."""

    kind: str
    name: str
    left: float | None
    right: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Where two runs part.

    Attributes:
        left, right: the two.
        equal: the last iteration before the difference after which both states are known to be equal.
        different: the first iteration at which anything differs; ``None`` if nothing does.
        first: what differs first there, if it is known: the batch that the step received; the state, though the
            batch is equal; or only what validation found.
        leaves: the leaves of the state that differ, at ``leaves_at``: the first iteration from ``different`` on at
            which both states are known.
        batch: the leaves of the batch that differ.
        metrics: the metrics that differ in the rows of that iteration.
        equal_at: all iterations at which the states are known to be equal, up to the difference.
        compared: how many iterations could be compared in any way.
        facts: what differs in versions, environment, geometry and configuration: name, left, right.
    """

    left: Evidence
    right: Evidence
    equal: Witness | None = None
    different: Witness | None = None
    first: Culprit | None = None
    leaves: tuple[str, ...] = ()
    leaves_at: Witness | None = None
    batch: tuple[str, ...] = ()
    metrics: tuple[MetricPair, ...] = ()
    equal_at: tuple[int, ...] = ()
    compared: int = 0
    facts: tuple[tuple[str, Any, Any], ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether the difference arose in exactly the iteration of ``different``."""
        if self.equal is None or self.different is None:
            return False
        return self.equal.iteration + 1 == self.different.iteration


def compare(left: Path | str | Evidence, right: Path | str | Evidence) -> Comparison:
    """Find the first iteration at which two runs differ, from their logs, fingerprints and checkpoints.

    Metrics and digests are compared bit for bit; NaN equals NaN. Where both runs log fingerprints, no checkpoint is
    read but those between; equal files of two checkpoints are not read either.

    Args:
        left, right: roots of runs, or what `gather` found in them.

    Raises:
        CheckpointError: one of them holds no run.
        ValueError: there is no iteration of which both tell anything.
    """
    here, there = (side if isinstance(side, Evidence) else gather(side) for side in (left, right))
    found = Comparison(here, there, facts=tuple(_facts(here.newest, there.newest)))
    moments = sorted(_moments(here) & _moments(there))
    if not moments:
        raise ValueError(
            f"there is no iteration of which both {here.root} and {there.root} tell anything: log or save at common "
            "iterations, such as by fingerprint_every"
        )
    for compared, iteration in enumerate(moments, 1):
        at = dataclasses.replace(_compared(found, iteration), compared=compared)
        found = at
        if at.different is not None:
            return at if at.leaves_at else _with_leaves(at, moments[compared:])
    return found


def _moments(evidence: Evidence) -> set[int]:
    return {*evidence.checkpoints, *evidence.fingerprints, *(iteration for _, iteration in evidence.rows)}


def _compared(found: Comparison, iteration: int) -> Comparison:
    """What was found before, with one more iteration compared, if there is a way to."""
    here, there = found.left, found.right
    prints = here.fingerprints.get(iteration), there.fingerprints.get(iteration)
    batch = differing(prints[0].batch, prints[1].batch) if prints[0] and prints[1] else ()
    metrics = _other_metrics(here, there, iteration)
    state = _states(here, there, iteration)
    by, leaves = state or ("metrics", ())
    if not (batch or leaves or metrics):
        if state is None:
            return found
        equal_at = (*found.equal_at, iteration)
        return dataclasses.replace(found, equal=Witness(iteration, by), equal_at=equal_at)
    first: Culprit | None = None
    if batch:
        first, by = "batch", "fingerprint"
    elif only_validation(leaves, metrics):
        first = "validation"
    elif prints[0] and prints[1]:
        first = "state"
    witness = Witness(iteration, by if leaves or batch else "metrics")
    known_at = Witness(iteration, by) if state else None
    return dataclasses.replace(
        found, different=witness, first=first, leaves=leaves, leaves_at=known_at, batch=batch, metrics=metrics
    )


def _with_leaves(found: Comparison, later: list[int]) -> Comparison:
    """The same with the leaves that differ at the next iteration after which both states are known."""
    for iteration in later:
        state = _states(found.left, found.right, iteration)
        if state is not None:
            return dataclasses.replace(found, leaves=state[1], leaves_at=Witness(iteration, state[0]))
    return found


def _states(here: Evidence, there: Evidence, iteration: int) -> tuple[By, tuple[str, ...]] | None:
    """By what the two states can be compared, and the leaves that differ."""
    both = here.checkpoints.get(iteration), there.checkpoints.get(iteration)
    logged = iteration in here.fingerprints and iteration in there.fingerprints
    if not logged and both[0] and both[1] and both[0].manifest.files == both[1].manifest.files:
        return "checkpoint", ()
    one, other = here.at(iteration), there.at(iteration)
    if one is None or other is None:
        return None
    return "fingerprint" if logged else "checkpoint", differing_states(one, other)


def differing(left: Mapping[str, str], right: Mapping[str, str]) -> tuple[str, ...]:
    """The paths whose digests differ, or that only one side has, in the order of the left."""
    paths = dict.fromkeys([*left, *right])
    return tuple(path for path in paths if left.get(path) != right.get(path))


def differing_states(left: Known, right: Known) -> tuple[str, ...]:
    """The paths of leaves that differ. Fingerprints leave out sharded leaves, which a checkpoint has."""
    (by, here), (other_by, there) = left, right
    if by != other_by:
        here = {path: digest for path, digest in here.items() if path in there}
        there = {path: digest for path, digest in there.items() if path in here}
    return differing(here, there)


def only_validation(leaves: tuple[str, ...], metrics: tuple[MetricPair, ...]) -> bool:
    """Whether nothing differs but what validation found."""
    states = all(leaf.startswith("validation.") for leaf in leaves)
    return states and all(pair.kind == "validation" for pair in metrics)


def _other_metrics(here: Evidence, there: Evidence, iteration: int) -> tuple[MetricPair, ...]:
    return tuple(
        pair
        for kind in ("train", "validation")
        for pair in other_metrics(here.rows.get((kind, iteration)), there.rows.get((kind, iteration)))
    )


def other_metrics(left: Row | None, right: Row | None) -> list[MetricPair]:
    """The metrics that differ between two rows of one kind, bit for bit; none where one is missing."""
    if left is None or right is None:
        return []
    names = sorted({*left.metrics, *right.metrics})
    pairs = [MetricPair(left.kind, name, left.metrics.get(name), right.metrics.get(name)) for name in names]
    return [pair for pair in pairs if _bits(pair.left) != _bits(pair.right)]


def _bits(value: float | None) -> bytes:
    # A log has one NaN only.
    return b"" if value is None else b"nan" if value != value else struct.pack("<d", value)


def _facts(left: Checkpoint, right: Checkpoint) -> list[tuple[str, Any, Any]]:
    def told(checkpoint: Checkpoint) -> dict[str, Any]:
        record = checkpoint.record
        config = record.get("config")
        kept = (
            {name: value for name, value in config.items() if name not in _PLACEMENT}
            if isinstance(config, dict)
            else {}
        )
        parts = {name: record.get(name) for name in ("environment", "geometry", "processes", "history")}
        return {"versions": dict(checkpoint.manifest.versions), **parts, "config": kept}

    return differences(told(left), told(right))
