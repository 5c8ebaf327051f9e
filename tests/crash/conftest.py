"""Folders in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory() -> Iterator[Path]:
    """A fresh folder in memory where there is such a thing: thousands of small roots, and syncs that cost nothing."""
    folder = Path(tempfile.mkdtemp(prefix="helios-crash-")).resolve()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
