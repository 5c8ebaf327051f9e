"""Processes that do not end by themselves are ended soon; a pool of those that live on."""

from __future__ import annotations

import pytest

from helios_fn.distributed import _watch

from .pool import Pool


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(_watch, "_ANSWER", 0.3)
    monkeypatch.setattr(_watch, "_LAST", 0.3)


@pytest.fixture(scope="session")
def pool():
    made = Pool()
    yield made
    made.close()
