"""Phases: a plain value that says which source comes when."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from helios_fn import random
from helios_fn.data import Loader, Phases, Stream
from helios_fn.types import Cursor, Share

KEY = random.key(0)


def loader(n):
    return Loader(list(range(n)), 2)


def test_each_phase_has_its_source_and_is_left_when_its_predicate_says_so():
    """The last one never is."""
    sources = [loader(3), loader(5)]
    phases = Phases(sources, [lambda state: state > 10])
    assert len(phases) == 2
    assert [phases.source(p) for p in (0, 1)] == sources
    assert [phases.should_advance(0, state) for state in (10, 11)] == [False, True]
    assert phases.should_advance(1, 99) is False
    with pytest.raises(ValueError, match="there are 2 phases, and phase 2 is none of them"):
        phases.source(2)


def test_the_same_loader_has_another_order_in_another_phase():
    """A phase is part of the position."""
    shared = Loader(list(range(40)), 40)
    phases = Phases([shared, shared], [lambda state: True])
    orders = [
        next(phases.source(p).open(Cursor(phase=p, epoch=3), key=KEY, share=Share())).items[0].tolist() for p in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_describe_and_close_reach_every_source():
    """The facts of all phases in order."""
    phases = Phases([loader(3), Stream(lambda position, key: iter([(0, 0)]), 1)], [lambda state: True])
    described = phases.describe()
    assert described["kind"] == "phases"
    assert [source["kind"] for source in described["phases"]] == ["map", "stream"]
    phases.close()


@pytest.mark.parametrize(
    ("sources", "advance", "error", "message"),
    [
        ([], [], ValueError, "at least one source"),
        ([loader(3)], [bool], ValueError, "1 phases have 0 changes between them, got 1"),
        ([loader(3), loader(3)], [3], TypeError, r"advance\[0\] must be a function of the state, got 3"),
        ([loader(3), DataLoader([1])], [bool], TypeError, r"sources\[1\].*hf\.data\.from_dataloader"),
    ],
)
def test_phases_are_checked(sources, advance, error, message):
    """When they are made."""
    with pytest.raises(error, match=message):
        Phases(sources, advance)
