"""One run at a time in one root, and never a lock that outlives its holder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helios_fn.checkpoint import Lock, Store
from helios_fn.errors import CheckpointError, RootLocked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = file.read()
    os.waitpid(child, 0)
    return result


def try_lock(path: Path) -> str:
    try:
        Lock(path)
    except RootLocked as error:
        return str(error)
    return "free"


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    """By process number and host."""
    with Lock(tmp_path / "lock"):
        message = in_child(lambda: try_lock(tmp_path / "lock"))
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in message
    assert in_child(lambda: try_lock(tmp_path / "lock")) == "free"


def test_a_second_store_in_the_same_process_is_refused(tmp_path: Path) -> None:
    """The lock belongs to the store, not to the process."""
    one, two = Store(tmp_path, "a"), Store(tmp_path, "b")
    with one.lock() as lock:
        assert lock.held
        with pytest.raises(RootLocked):
            two.lock()
        with pytest.raises(RootLocked):
            one.lock()
    assert not lock.held
    two.lock().release()


def test_closing_the_file_elsewhere_does_not_free_the_lock(tmp_path: Path) -> None:
    """A backup made by the process itself reads the lock file too."""
    with Lock(tmp_path / "lock"):
        (tmp_path / "lock").read_bytes()
        assert in_child(lambda: try_lock(tmp_path / "lock")) != "free"


def test_a_forked_child_neither_holds_nor_frees_the_lock(tmp_path: Path) -> None:
    """Data-loader workers come and go."""
    with Lock(tmp_path / "lock") as lock:

        def child() -> str:
            held = lock.held
            lock.release()
            return str(held)

        assert in_child(child) == "False"
        assert in_child(lambda: try_lock(tmp_path / "lock")) != "free"


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[int]:
    """The child of a process that was killed while it held the lock."""
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            Lock(tmp_path / "lock")
            worker = os.fork()
            if worker == 0:
                signal.pause()
            os.write(writer, str(worker).encode())
            signal.pause()
        finally:
            os._exit(1)
    worker = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    try:
        assert in_child(lambda: try_lock(tmp_path / "lock")) != "free"
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        yield worker
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_free_while_its_workers_linger(tmp_path: Path, orphan: int) -> None:
    """A flock is shared with forked children: they must have let go of it."""
    os.kill(orphan, 0)
    with Lock(tmp_path / "lock") as lock:
        assert lock.held


def test_an_executed_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """Also where it inherits all other files."""
    lock = Lock(tmp_path / "lock")
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        lock.release()
        Lock(tmp_path / "lock").release()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid":"x","host":1}', b"[" * 9999, b"\xff"])
def test_a_strange_lock_file_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    """Its content is for people; the lock itself is the kernel's."""
    (tmp_path / "lock").write_bytes(content)
    with Lock(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(RootLocked, match="in use by another process"):
            Lock(tmp_path / "lock")


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    """With the path and the reason."""
    (tmp_path / "lock").mkdir()
    with pytest.raises(CheckpointError, match="cannot lock"):
        Lock(tmp_path / "lock")


def test_unfinished_folders_are_cleaned_only_under_the_lock(tmp_path: Path) -> None:
    """Another process may be writing one at this moment."""
    store = Store(tmp_path, "run")
    unfinished = store.folder / ".writing-run_epoch_0_iter_0"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    Store(tmp_path, "run").newest()
    assert unfinished.exists()
    with store.lock():
        assert not unfinished.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_released_lock_leaves_no_open_file(tmp_path: Path) -> None:
    """Nor does a refused one."""
    before = set(os.listdir("/proc/self/fd"))
    with Lock(tmp_path / "lock"), pytest.raises(RootLocked):
        Lock(tmp_path / "lock")
    assert set(os.listdir("/proc/self/fd")) == before
