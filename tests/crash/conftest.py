"""The table of faults at the end of the report, and folders in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .tally import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried and how it ended."""
    if TALLY.counts:
        terminalreporter.section("faults tried, and how they ended")
        for line in TALLY.table():
            terminalreporter.write_line(line)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A fresh folder in memory where there is such a thing: thousands of small roots, and syncs that cost nothing."""
    folder = Path(tempfile.mkdtemp(prefix="helios-crash-")).resolve()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
