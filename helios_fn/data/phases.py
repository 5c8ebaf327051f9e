"""Phases: a curriculum of sources, each left when a predicate of the state says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..types import Json, Source


class Phases:
    """Sources to train on one after another.

    A plain value: the driver reads ``source(cursor.phase)`` and asks ``should_advance`` after every
    iteration. No iteration mixes phases, and an epoch that is cut short counts as one.

    Args:
        sources: the source of each phase.
        advance: ``advance[p](state)`` is true when phase p is to be left; one for each phase but the
            last. A pure function of the state, or a resumed run would change phase at another time.

    Example:
        >>> easy, hard = hf.Loader(torch.arange(4), 2), hf.Loader(torch.arange(100), 2)
        >>> phases = hf.Phases([easy, hard], advance=[lambda state: state.cursor.epoch >= 3])
        >>> state = hf.init_state({"w": torch.zeros(1)})
        >>> phases.should_advance(0, state), phases.should_advance(0, state.replace(cursor=hf.Cursor(epoch=3)))
        (False, True)
    """

    def __init__(self, sources: Sequence[Source], advance: Sequence[Callable[[Any], Any]]) -> None:
        self._sources = tuple(sources)
        self._advance = tuple(advance)
        if not self._sources:
            raise ValueError("Phases needs at least one source")
        if len(self._advance) != len(self._sources) - 1:
            raise ValueError(
                f"{len(self._sources)} phases have {len(self._sources) - 1} changes between them, got "
                f"{len(self._advance)} in advance: give one predicate for each phase but the last"
            )
        for index, source in enumerate(self._sources):
            if not isinstance(source, Source):
                raise TypeError(
                    f"sources[{index}] must be a Loader, a Stream or another Source, got {type(source).__name__}; "
                    "a torch DataLoader becomes one by hf.data.from_dataloader"
                )
        for index, predicate in enumerate(self._advance):
            if not callable(predicate):
                raise TypeError(f"advance[{index}] must be a function of the state, got {predicate!r}")

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, phase: int) -> Source:
        """The source of a phase.

        Raises:
            ValueError: there is no such phase.
        """
        if not 0 <= phase < len(self._sources):
            raise ValueError(f"there are {len(self._sources)} phases, and phase {phase} is none of them")
        return self._sources[phase]

    def replace(self, sources: Sequence[Source]) -> Phases:
        """The same curriculum over other sources."""
        return Phases(sources, self._advance)

    def should_advance(self, phase: int, state: Any) -> bool:
        """Whether ``phase`` is over at ``state``; the last phase never is."""
        return phase < len(self._advance) and bool(self._advance[phase](state))

    def describe(self) -> dict[str, Json]:
        """The facts that decide the bytes of the batches, as plain JSON values."""
        described: list[Json] = [source.describe() for source in self._sources]
        return {"kind": "phases", "phases": described}

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources:
            source.close()
