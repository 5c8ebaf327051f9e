"""The same laws where a file has many chunks: written directly, in any order, by several threads.

What is written so is large; here chunks are small instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios_fn.checkpoint import FileSystem, arrays, checksum, format, manifest, output

from .intercept import FAILURES, KILLS
from .scenes import BY_NAME
from .test_faults import Fixed
from .test_power_loss import FINE, check_power_cuts

CHUNK, BLOCK = 256, 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and blocks of a few bytes, which no disk takes directly: what is to go so goes the usual way."""
    for module in (checksum, output, manifest, arrays):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    for module in (format, arrays):
        monkeypatch.setattr(module, "THREADED", 0)
    monkeypatch.setattr(output, "BLOCK", BLOCK)
    monkeypatch.setattr(FileSystem, "direct", lambda self, handle, on: on)


@pytest.mark.parametrize("faults", [KILLS, FAILURES], ids=["kill", "failure"])
def test_whatever_call_of_several_threads_is_the_last(memory: Path, faults: list[Any]) -> None:
    """Each call of a save is struck in turn; which thread makes it differs from time to time."""
    fixed = Fixed(BY_NAME["later save"], memory)
    assert fixed.calls > 40, "many more than chunks of the usual size make"
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, faults[n % len(faults)], again=n % 2 == 0)


@pytest.mark.soak
def test_a_power_cut_among_writes_in_any_order(memory: Path) -> None:
    """The bytes of one file that are durable need not be its first."""
    check_power_cuts(BY_NAME["first save"], memory, FINE)
