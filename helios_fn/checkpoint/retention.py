"""Which checkpoints a policy keeps: pure functions of what their manifests say.

Three laws make it safe to decide again after each save, in whatever process:

- A decision taken again says the same: ``retained(retained(x)) == retained(x)``.
- None is regretted: what is given up is not wanted when newer checkpoints have come.
- So pruning after each save leaves what one decision at the end would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..config import Retention
from ..types import Json
from .listing import Checkpoint

NEWEST = 2
"""How many of the newest checkpoints stay whatever the policy: one to go on from, and one should that be damaged."""


class Entry(NamedTuple):
    """What a decision looks at.

    Attributes:
        name: tells the entry apart from all others.
        iteration: completed calls of ``step``.
        micro_step: consumed micro-batches.
        metrics: what the last validation before it found.
        cycle: the number of that validation; ``None`` where the manifest does not tell.
    """

    name: str
    iteration: int
    micro_step: int
    metrics: Mapping[str, float]
    cycle: int | None

    @property
    def age(self) -> tuple[int, int, str]:
        """Sorts entries from the oldest to the newest."""
        return self.iteration, self.micro_step, self.name


def entry_of(checkpoint: Checkpoint) -> Entry:
    """What a decision looks at in a checkpoint."""
    cycle = checkpoint.record.get("cycles")
    return Entry(
        checkpoint.path.name,
        checkpoint.iteration,
        checkpoint.micro_step,
        metrics_of(checkpoint.record),
        cycle if type(cycle) is int else None,
    )


def metrics_of(record: Mapping[str, Json]) -> dict[str, float]:
    """The validation metrics in the record of a manifest; what is no number is left out."""
    metrics: dict[str, float] = {}
    stored = record.get("validation")
    for name, value in stored.items() if isinstance(stored, dict) else ():
        try:
            metrics[name] = float(value)  # type: ignore[arg-type]  # text, for strict JSON has no infinity
        except (TypeError, ValueError, OverflowError):
            continue
    return metrics


def ranked(entries: Iterable[Entry], monitor: str, mode: str) -> list[Entry]:
    """One entry for each validation cycle, the best first; NaN and entries without the metric are left out."""
    sign = 1.0 if mode == "min" else -1.0
    first: dict[tuple[int | None, float], Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.age):
        value = entry.metrics.get(monitor)
        if value is not None and value == value:
            # Later checkpoints repeat the value until the next cycle: the first one is what was validated.
            first.setdefault((entry.cycle, value), entry)
    return sorted(first.values(), key=lambda entry: (sign * entry.metrics[monitor], entry.age))


def reasons(entries: Sequence[Entry], policy: Retention) -> dict[str, tuple[str, ...]]:
    """Why each entry is kept, in words, by name; no words for those that are not."""
    found: dict[str, list[str]] = {entry.name: [] for entry in entries}
    ordered = sorted(entries, key=lambda entry: entry.age, reverse=True)
    for place, entry in enumerate(ordered[: max(NEWEST, policy.last or 0)], start=1):
        found[entry.name].append("newest" if place == 1 else f"last {place}")
    if policy.best and policy.monitor is not None:
        for place, entry in enumerate(ranked(entries, policy.monitor, policy.mode)[: policy.best], start=1):
            found[entry.name].append(f"best {place}")
    if policy.every is not None:
        first = {entry.iteration // policy.every: entry for entry in ordered}  # the oldest comes last, and stays
        for period, entry in first.items():
            found[entry.name].append(f"every {period * policy.every}")
    return {name: tuple(words) for name, words in found.items()}


def retained(entries: Sequence[Entry], policy: Retention) -> list[Entry]:
    """The entries that ``policy`` keeps, in the order given."""
    why = reasons(entries, policy)
    return [entry for entry in entries if why[entry.name]]
