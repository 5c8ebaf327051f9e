"""What was tried, and how it ended: the table that the harness prints."""

from __future__ import annotations

import enum
from collections import Counter
from typing import Self


class Outcome(enum.Enum):
    """How one fault ended. The values are the columns of the table; the first three are the good ends."""

    REJECTED = "rejected"  # the damage was named, and the checkpoint before it was used
    RECOVERED = "recovered"  # the next start found the last completed checkpoint, or the new one
    UNHARMED = "unharmed"  # the call succeeded all the same
    CORRUPT = "corrupt loads"  # a load gave other bits than were saved, without a word
    SILENT = "silent damage"  # changed bytes were taken for sound
    LOST = "lost"  # a completed checkpoint, or the way on from it, was gone
    UNCLEAR = "unclear error"  # another error than `CheckpointError`, a hang, or too much memory

    @property
    def good(self) -> bool:
        return self in (Outcome.REJECTED, Outcome.RECOVERED, Outcome.UNHARMED)


class Finding(AssertionError):
    """A law of the checkpoints is broken. Carries the outcome for the table."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(f"{outcome.value}: {message}")
        self.outcome = outcome


class Tally:
    """Counts outcomes by kind of fault, over a whole session."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[Outcome]] = {}

    def add(self, kind: str, outcome: Outcome, number: int = 1) -> None:
        self.counts.setdefault(kind, Counter())[outcome] += number

    def dump(self) -> dict[str, dict[str, int]]:
        """The counts as plain values, which one process can send to another."""
        return {kind: {outcome.name: number for outcome, number in each.items()} for kind, each in self.counts.items()}

    def load(self, dumped: dict[str, dict[str, int]]) -> None:
        """Add what another process has counted."""
        for kind, each in dumped.items():
            for outcome, number in each.items():
                self.add(kind, Outcome[outcome], number)

    def table(self) -> list[str]:
        """One line per kind, and one for the sum."""
        total: Counter[Outcome] = sum(self.counts.values(), Counter())
        heads = ["fault", "tried", *(outcome.value for outcome in Outcome)]
        rows = [[kind, *_numbers(counts)] for kind, counts in [*sorted(self.counts.items()), ("all", total)]]
        widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in [heads, *rows]]


def _numbers(counts: Counter[Outcome]) -> list[str]:
    return [str(counts.total()), *(str(counts[outcome]) for outcome in Outcome)]


TALLY = Tally()
"""The session's."""


class Trial:
    """Counts one attempt: with ``outcome`` where the block ends well, else by the `Finding` that it raised."""

    def __init__(self, kind: str, outcome: Outcome = Outcome.RECOVERED) -> None:
        self.kind = kind
        self.outcome = outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Finding):
            self.outcome = error.outcome
        elif error is not None:
            self.outcome = Outcome.UNCLEAR
        TALLY.add(self.kind, self.outcome)
