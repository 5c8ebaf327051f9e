"""The same faults without the seam: strace kills, or fails, the real process at its n-th system call."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helios_fn.errors import CheckpointError

from .intercept import Intercepted
from .scenes import BY_NAME, Scene
from .tally import Finding, Outcome, Trial

STRACE = shutil.which("strace")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(sys.platform != "linux", reason="strace is of Linux"),
    pytest.mark.skipif(STRACE is None, reason="strace is not installed: real system calls are not made to fail"),
]

# By what they do; the C library chooses between the spellings.
CALLS = {
    "fsync": "fsync,fdatasync",
    "rename": "rename,renameat,renameat2",
    "write": "write,pwrite64,writev",
    "open": "open,openat",
    "mkdir": "mkdir,mkdirat",
    "unlink": "unlink,unlinkat,rmdir",
    "close": "close",
    "list": "getdents64",
}
ERRORS = {"fsync": "EIO", "rename": "EIO", "write": "ENOSPC", "open": "EMFILE", "mkdir": "ENOSPC", "unlink": "EACCES"}
NAMES = ("save in a new root", "later save", "save in another's place", "recovery by lock", "newest", "supersede")
WATCHED = [BY_NAME[name] for name in NAMES]


def traced(scene: Scene, root: Path, injection: str) -> tuple[int, bool]:
    """Do the act in a forked process under strace.

    Returns:
        Its wait status, and whether anything was injected. Calls are counted from the beginning of the act.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        _act(scene, root)
    assert STRACE is not None
    log = root.with_name("strace.log")
    names = injection.split(":")[0]
    command = [STRACE, "-f", "-p", str(child), "-e", f"trace={names}", "-e", f"inject={injection}", "-o", str(log)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        told = tracer.stderr.readline()
        os.write(writer, b"x")
        _, status = os.waitpid(child, 0)
        tracer.wait(60)
        tracer.stderr.close()
    finally:
        os.close(reader)
        os.close(writer)
    if "attached" not in told:
        pytest.skip(f"strace may not trace here: {told.strip()}")
    return status, "(INJECTED)" in log.read_text() or os.WIFSIGNALED(status)


def _act(scene: Scene, root: Path) -> None:
    """Never returns: the process ends with 0, or with 2 for the one error that is allowed."""
    status = 1
    try:
        scene.act(root, Intercepted())
        status = 0
    except CheckpointError:
        status = 2
    finally:
        os._exit(status)


@pytest.fixture(params=WATCHED, ids=str)
def scene(request: pytest.FixtureRequest) -> Scene:
    return request.param


def each(scene: Scene, memory: Path, kind: str, fault: str, counted: str) -> None:
    """Strike at the first call of a kind, at the second, and so on until the act has no more."""
    struck, n = True, 0
    while struck:
        n += 1
        root = memory / str(n)
        scene.prepare(root)
        with Trial(counted) as trial:
            status, struck = traced(scene, root, f"{CALLS[kind]}:{fault}:when={n}")
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
                raise Finding(Outcome.UNCLEAR, f"another error than CheckpointError at {kind} {n}: see above")
            trial.outcome = Outcome.RECOVERED if status else Outcome.UNHARMED
            scene.check(root, scene.right(returned=status == 0))
        shutil.rmtree(root)


@pytest.mark.parametrize("kind", CALLS)
def test_sigkill_at_every_system_call_loses_nothing(scene: Scene, memory: Path, kind: str) -> None:
    """The kernel ends the process as it enters the call."""
    each(scene, memory, kind, "signal=SIGKILL", "SIGKILL at a system call")


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_every_system_call_loses_nothing(scene: Scene, memory: Path, kind: str) -> None:
    """The kernel refuses the call."""
    each(scene, memory, kind, f"error={ERRORS[kind]}", "failing system call")


def test_the_tracer_sees_the_calls_of_a_save(memory: Path) -> None:
    """A save syncs, renames and writes: the first of each can be struck."""
    for kind in ("fsync", "rename", "write", "open", "mkdir", "close"):
        root = memory / kind
        BY_NAME["later save"].prepare(root)
        status, _ = traced(BY_NAME["later save"], root, f"{CALLS[kind]}:signal=SIGKILL:when=1")
        assert os.WIFSIGNALED(status), kind
        assert os.WTERMSIG(status) == signal.SIGKILL
