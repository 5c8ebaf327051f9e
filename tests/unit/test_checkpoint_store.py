"""A root of checkpoints: what is found, chosen, kept and moved, whatever fails and whenever it is killed."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Store
from helios_fn.checkpoint.checksum import CHUNK
from helios_fn.errors import CheckpointError


class Killed(BaseException):
    """The process ends here: no handler may run."""


class Volatile(FileSystem):
    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Faulty(Volatile):
    """Fails at the ``n``-th call with ``error``, or stops there for good where that is `Killed`."""

    def __init__(self, n: float, error: Callable[[], BaseException]) -> None:
        self.calls = 0
        self._n = n
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name.startswith("_") or name == "calls":
            return method

        def call(*args: Any) -> Any:
            self.calls += 1
            error = self._error()
            if self.calls == self._n or (self.calls > self._n and isinstance(error, Killed)):
                if name == "write":
                    method(args[0], args[1][: len(args[1]) // 2])
                if name == "close":  # the number is given back even where the call fails
                    method(*args)
                raise error
            return method(*args)

        return call


def state(value: float) -> dict[str, Any]:
    return {"w": torch.full((3, 4), float(value)), "n": 1}


def save(store: Store, i: int, value: float | None = None, **keywords: Any) -> Path:
    counts = {"epoch": i // 10, "iteration": i, "micro_step": 2 * i, "record": {"i": i}}
    return store.save(state(i if value is None else value), **{**counts, **keywords})


def make(root: Path, files: FileSystem | None = None, name: str = "run") -> Store:
    return Store(root, name, files=files or Volatile())


def newest_value(store: Store) -> float:
    newest = store.newest()
    assert newest is not None
    return store.load(newest, state(0))["w"][0, 0].item()


def test_a_checkpoint_is_named_after_its_run_epoch_and_micro_step(tmp_path: Path) -> None:
    """``<run-name>_epoch_<e>_iter_<i>[_<metadata>]``."""
    store = make(tmp_path, name="cifar10")
    path = save(store, 50, epoch=3, metadata="accuracy_0.89")
    assert path == tmp_path / "checkpoints" / "cifar10_epoch_3_iter_100_accuracy_0.89"
    assert sorted(os.listdir(path)) == ["manifest.json", "state.json", "tensors.safetensors"]


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    """Counts and record come back from the manifest, infinities and nesting included."""
    store = make(tmp_path)
    record = {"total": math.inf, "config": {"name": "é", "list": [1, 2.5, None, True]}}
    found = store.at(save(store, 12, record=record))
    assert (found.iteration, found.micro_step, found.epoch, found.record) == (12, 24, 1, record)
    assert found.manifest.versions["torch"] == str(torch.__version__)


def test_an_empty_root_has_no_newest_checkpoint(tmp_path: Path) -> None:
    """Nothing is not an error."""
    store = make(tmp_path)
    assert store.newest() is None
    assert store.entries() == []


def test_the_newest_is_the_one_with_the_highest_iteration(tmp_path: Path) -> None:
    """Not the last by name (10 sorts before 9), by time of writing, or by the name it was given since."""
    store = make(tmp_path)
    for i in (10, 9, 2):
        save(store, i)
    os.utime(store.folder / "run_epoch_0_iter_4", (2e9, 2e9))
    (store.folder / "run_epoch_1_iter_20").rename(store.folder / "run_epoch_0_iter_1_renamed")
    assert [entry.iteration for entry in store.entries()] == [10, 9, 2]
    assert newest_value(store) == 10


def test_runs_under_other_names_are_left_alone(tmp_path: Path) -> None:
    """Also where one name begins with the other, and where the other's checkpoint is damaged."""
    one, other = make(tmp_path, name="a"), make(tmp_path, name="a_epoch_1")
    save(one, 1)
    path = save(other, 5)
    assert [entry.iteration for entry in one.entries()] == [1]
    assert newest_value(one) == 1
    (path / "manifest.json").write_bytes(b"")
    assert newest_value(one) == 1
    assert path.is_dir()
    assert len(other.damaged()) == 1


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "a\n", "a\0", "x" * 65, "ü", "a b", 3]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, bad: Any) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match="cannot name files"):
        Store(tmp_path / "root", bad)
    assert not (tmp_path / "root").exists()
    if bad:
        store = make(tmp_path)
        with pytest.raises(ValueError, match="metadata"):
            save(store, 1, metadata=bad)
        assert store.newest() is None


@pytest.mark.parametrize("count", ["epoch", "iteration", "micro_step"])
@pytest.mark.parametrize("bad", [-1, 1.0, True, None, "1"])
def test_counts_must_be_counts(tmp_path: Path, count: str, bad: Any) -> None:
    """They become part of names and of the order."""
    store = make(tmp_path)
    with pytest.raises(ValueError, match=count):
        save(store, 1, **{count: bad})
    assert os.listdir(store.folder) == []


def test_a_root_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    """Not after the first hour of training."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write to the root .*file"):
        Store(tmp_path / "file" / "root", "run")
    calls = Faulty(math.inf, Killed)
    make(tmp_path / "counted", calls)
    for n in range(1, calls.calls + 1):
        with pytest.raises(CheckpointError, match=r"No space.*\(ENOSPC\)"):
            make(tmp_path / f"{n}", Faulty(n, lambda: OSError(errno.ENOSPC, "No space left on device")))


def test_a_probe_left_by_a_killed_process_does_no_harm(tmp_path: Path) -> None:
    """In a container the next process has the same number; those of other numbers go with the lock."""
    store = make(tmp_path)
    (store.folder / ".writing-probe-1").touch()
    with store.lock():
        assert os.listdir(store.folder) == []
    (store.folder / f".writing-probe-{os.getpid()}").touch()
    make(tmp_path)
    assert os.listdir(store.folder) == []


def test_an_equal_checkpoint_is_reused(tmp_path: Path) -> None:
    """Saving the same state with the same record writes nothing."""
    store = make(tmp_path)
    path = save(store, 1)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    restored = store.load(store.at(path), state(0))
    assert store.save(restored, epoch=0, iteration=1, micro_step=2, record={"i": 1}) == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("change", ["state", "record", "iteration", "damage"])
def test_another_checkpoint_of_the_same_name_is_set_aside(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is moved, with a message, never overwritten."""
    store = make(tmp_path)
    path = save(store, 1)
    if change == "damage":
        (path / "state.json").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "helios_fn"):
        again = save(
            store,
            1,
            value=2.0 if change == "state" else None,
            record={"i": 5 if change == "record" else 1},
            iteration=3 if change == "iteration" else 1,
        )
    assert again == path
    assert newest_value(store) == (2.0 if change == "state" else 1.0)
    assert os.listdir(tmp_path / "damaged") == [path.name]
    assert "moved to" in caplog.text


def test_going_back_moves_newer_checkpoints_into_a_numbered_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of this run only; each time into the next free folder."""
    store, other = make(tmp_path), make(tmp_path, name="other")
    paths = {i: save(store, i) for i in (1, 2, 3, 4)}
    save(other, 9)
    assert store.supersede(store.at(paths[4])) is None
    (tmp_path / "superseded" / "7").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "helios_fn"):
        target = store.supersede(store.at(paths[2]))
    assert target == tmp_path / "superseded" / "8"
    assert sorted(os.listdir(target / "checkpoints")) == [paths[3].name, paths[4].name]
    assert [entry.iteration for entry in store.entries()] == [2, 1]
    assert [entry.iteration for entry in other.entries()] == [9]
    assert store.at(target / "checkpoints" / paths[4].name).iteration == 4
    assert str(target) in caplog.text
    assert store.supersede(store.at(paths[1])) == tmp_path / "superseded" / "9"


def test_an_explicit_path_may_lie_outside_of_the_root(tmp_path: Path) -> None:
    """A branch starts from another run's checkpoint."""
    there, here = make(tmp_path / "there", name="theirs"), make(tmp_path / "here")
    found = here.at(save(there, 3))
    assert tree.diff(here.load(found, state(0)), state(3)) == []
    with pytest.raises(CheckpointError, match=r"nowhere is not a folder"):
        here.at(tmp_path / "nowhere")


def test_paths_agree_where_the_root_is_reached_through_a_link(tmp_path: Path) -> None:
    """A caller may ask whether a checkpoint lies in the store's folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = make(tmp_path / "link")
    path = save(store, 1)
    assert store.at(tmp_path / "link" / "checkpoints" / path.name).path.parent == store.folder == path.parent


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    """A full disk is not kept full by half a checkpoint, and the error says where and why."""

    class Full(Volatile):
        def write(self, handle: int, data: memoryview, start: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(make(tmp_path), 1)
    store = make(tmp_path, Full())
    with pytest.raises(CheckpointError, match=r"cannot save .*run_epoch_0_iter_4: No space left on device \(ENOSPC\)"):
        save(store, 2)
    assert os.listdir(store.folder) == ["run_epoch_0_iter_2"]


def test_reads_and_writes_may_be_short(tmp_path: Path) -> None:
    """The system promises to move some bytes, not all."""

    class Slow(Volatile):
        def write(self, handle: int, data: memoryview, start: int) -> int:
            return super().write(handle, data[:7], start)

        def read(self, handle: int, into: memoryview, start: int) -> int:
            return super().read(handle, into[:5], start)

    store = make(tmp_path, Slow())
    save(store, 1)
    assert newest_value(store) == 1.0


def test_large_tensors_pass_in_pieces(tmp_path: Path) -> None:
    """Small neighbours before and after them keep their places."""
    large = torch.arange(3 * CHUNK // 8 + 5, dtype=torch.int64)
    content = {"a": torch.ones(3), "large": large, "z": torch.ones(5, dtype=torch.uint8)}
    store = make(tmp_path)
    path = store.save(content, epoch=0, iteration=0, micro_step=0, record={})
    assert tree.diff(store.load(store.at(path), content), content) == []


def test_everything_is_synced_before_the_name_appears(tmp_path: Path) -> None:
    """Files, their folder, then the name, then the names' folder: a power cut finds a whole checkpoint or none."""
    log: list[str] = []
    names: dict[int, str] = {}

    class Recording(FileSystem):
        def create(self, path: Path) -> int:
            handle = super().create(path)
            names[handle] = path.name
            log.append(f"create {path.name}")
            return handle

        def sync(self, handle: int) -> None:
            super().sync(handle)
            log.append(f"sync {names[handle]}")

        def sync_folder(self, path: Path) -> None:
            super().sync_folder(path)
            log.append(f"sync {path.name}")

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            log.append(f"rename {source.name} {target.name}")

    store = make(tmp_path, Recording())
    log.clear()
    save(store, 1)
    assert log == [
        "create tensors.safetensors",
        "sync tensors.safetensors",
        "create state.json",
        "sync state.json",
        "create manifest.json",
        "sync manifest.json",
        "sync .writing-run_epoch_0_iter_2",
        "rename .writing-run_epoch_0_iter_2 run_epoch_0_iter_2",
        "sync checkpoints",
    ]
    log.clear()
    save(store, 1)
    assert log == ["sync checkpoints"], "the first try may have failed just before this"


def test_a_checkpoint_that_was_complete_but_not_named_is_finished(tmp_path: Path) -> None:
    """A process killed just before the last rename has lost nothing."""
    store = make(tmp_path)
    path = save(store, 1)
    path.rename(store.folder / f".writing-{path.name}")
    assert store.newest() is None
    with store.lock():
        assert newest_value(store) == 1.0


def test_small_tensors_are_written_together(tmp_path: Path) -> None:
    """A thousand leaves are not a thousand system calls."""
    files = Faulty(math.inf, Killed)
    store = make(tmp_path, files)
    before = files.calls
    store.save({str(i): torch.ones(3) for i in range(1000)}, epoch=0, iteration=0, micro_step=0, record={})
    assert files.calls - before < 50
