"""Profiles by HELIOS_FN_PROFILE (dev, ci, nightly, mutants), and threads pinned: bits depend on their number."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from multiprocessing import forkserver
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from .crash.tally import TALLY

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
_QUICK = [Phase.explicit, Phase.generate, Phase.shrink]
settings.register_profile("dev", deadline=None, suppress_health_check=_CHECKS, phases=_QUICK, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, database=None)
settings.register_profile("nightly", parent=settings.get_profile("dev"))
# A planted fault only has to be found, not to be shown in its simplest form.
settings.register_profile("mutants", parent=settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HELIOS_FN_PROFILE", "ci"))


# The laws make thousands of checkpoints in temporary folders of their own. In memory, fsync costs nothing;
# tests about disks use pytest's tmp_path, which stays on the disk.
if os.access("/dev/shm", os.W_OK):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = "/dev/shm"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _deterministic_kernels():
    """On an accelerator, where the laws are about to be held, the fastest kernels are not the same ones every time."""
    if os.environ.get("HELIOS_FN_TEST_DEVICE", "cpu") == "cpu":
        yield
    else:
        from helios_fn.testing import deterministic

        with deterministic(threads=1):
            yield


@pytest.fixture(autouse=True, scope="session")
def _fork_server():
    """Let the server that processes fork from begin its imports, while other tests run.

    In a fixture, where output is captured: what the processes say belongs to the test that is running.
    """
    if "tests.forked" in sys.modules:
        forkserver.ensure_running()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on the faults that were tried here, where this is one process of several."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = TALLY.dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what one of several processes has tried."""
    TALLY.load(getattr(node, "workeroutput", {}).get("faults", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which faults were tried, and how they ended."""
    if TALLY.counts:
        terminalreporter.section("faults tried, and how they ended")
        for line in TALLY.table():
            terminalreporter.write_line(line)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a background job of a shell; the tests send it to themselves and to processes that would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
