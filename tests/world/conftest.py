"""Processes that do not end by themselves are ended soon."""

from __future__ import annotations

import pytest

from helios_fn.distributed import _watch


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(_watch, "_ANSWER", 0.3)
    monkeypatch.setattr(_watch, "_LAST", 0.3)
