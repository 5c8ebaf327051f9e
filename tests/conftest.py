"""Profiles by HELIOS_FN_PROFILE (dev, ci, nightly, mutants), and threads pinned: bits depend on their number."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from multiprocessing import forkserver

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the server that processes fork from begin its imports, while other tests run."""
    if "tests.forked" in sys.modules and not session.config.option.collectonly:
        forkserver.ensure_running()


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a background job of a shell; the tests send it to themselves and to processes that would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
