"""Strategies behind the generated examples of a step; see `strategies` for those that are for everybody."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ..driver.batches import describe_batch
from .drawn import Change, Choice, Cut, Told, Trial, changeable, cut_all, items_of
from .unions import rows

_FIRST = 8  # samples that come before the others, which keep their order
_CHANGES = 3
_BEFORE = 3
_LONG = 500


def trials(
    state: Any,
    batch: Any,
    batches: st.SearchStrategy[Any] | None = None,
    states: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[Trial]:
    """Batches like ``batch`` or from ``batches``, on states that ``state`` leads to or from ``states``.

    Shrinks towards the first samples of ``batch`` on ``state`` itself.
    """
    return _trials(state, batch, batches_told(batch) if batches is None else batches.map(_told), states)


@st.composite
def _trials(
    draw: st.DrawFn, state: Any, usual: Any, batches: st.SearchStrategy[Told], states: st.SearchStrategy[Any] | None
) -> Trial:
    made = draw(batches)
    if states is not None:
        return Trial(made._replace(words=f"{made.words}, on a state from states"), draw(states))
    seed = draw(st.none() | st.integers(0, 2**32 - 1))
    return Trial(made, state, draw(st.integers(0, _BEFORE)), seed, usual)


def batches_told(batch: Any, fewest: int | None = None, most: int | None = None) -> st.SearchStrategy[Told]:
    """`strategies.batches_like`, with how each came about."""
    cuts = st.tuples(*(_cut(item, rows(item), changeable(item), fewest, most) for item in items_of(batch)))
    return cuts.map(lambda found: cut_all(batch, found))


@st.composite
def _cut(draw: st.DrawFn, batch: Any, length: int, leaves: list[Choice], fewest: int | None, most: int | None) -> Cut:
    greatest = length if most is None else min(most, length)
    count = draw(st.integers(min(2, greatest) if fewest is None else fewest, greatest))
    first = draw(st.lists(st.integers(0, length - 1), max_size=_FIRST, unique=True))
    samples = [*first, *(each for each in range(length) if each not in first)]
    changes = []
    for _ in range(draw(st.integers(0, _CHANGES)) if leaves and count else 0):
        leaf = draw(st.sampled_from(leaves))
        values = st.sampled_from(leaf.values)
        if leaf.between:
            values |= st.floats(leaf.values[0], leaf.values[-1])
        changes.append(Change(leaf.leaf, draw(st.integers(0, 2**16)), draw(values)))
    return Cut(samples[:count], changes)


def _told(batch: Any) -> Told:
    if isinstance(batch, Told):
        return batch
    shown = repr(batch)
    return Told(batch, shown if len(shown) < _LONG else f"a batch of {describe_batch(batch)}")
