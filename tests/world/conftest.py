"""Processes that do not end by themselves are ended soon; groups of processes and a pool, started once."""

from __future__ import annotations

import pytest

from helios_fn.distributed import _watch

from .gloo import Group
from .pool import Pool


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(_watch, "_ANSWER", 0.3)
    monkeypatch.setattr(_watch, "_LAST", 0.3)


@pytest.fixture(scope="session")
def two():
    group = Group(2)
    yield group
    group.close()


@pytest.fixture(scope="session")
def four():
    group = Group(4)
    yield group
    group.close()


@pytest.fixture(scope="session")
def pool():
    made = Pool()
    yield made
    made.close()
