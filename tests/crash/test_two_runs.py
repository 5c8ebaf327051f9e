"""One run at a time in a folder, between real runs; and a run that was killed is in nobody's way."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Process, end_orphans, leg
from .tally import Outcome, Trial
from .test_sigkill import save_heavy

CASE = save_heavy("iteration", 6)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Process]:
    """A run with workers, stopped as soon as it has saved something that it trained."""
    process = Process(CASE, tmp_path / "root", 2, ambient=1)
    for message in process.messages():
        if message == ("saved", 1):
            os.kill(process.pid, signal.SIGSTOP)
            break
    yield process
    process.kill()
    end_orphans()


def test_a_second_run_is_refused_and_one_after_a_kill_goes_on(tmp_path: Path, holder: Process) -> None:
    """The refusal names process and host; the lock is free as soon as its holder is dead, while workers linger."""
    with Trial("second run on a root", Outcome.REJECTED):
        second = leg(CASE, tmp_path / "root", 0, ambient=2, kill=None)
        assert second.last is not None
        assert second.last[0] == "RootLocked"
        assert f"in use by process {holder.pid} on {socket.gethostname()}" in second.last[1]
        assert second.start == -1
    with Trial("lock of a killed run"):
        holder.kill()
        third = leg(CASE, tmp_path / "root", 0, ambient=3, kill=None)
        assert third.start >= 1
        assert third.last == leg(CASE, tmp_path / "alone", 0, ambient=4, kill=None).last
