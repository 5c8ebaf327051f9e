"""The model of power loss gives the states that its rules say, on logs short enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from .disk import Disk
from .power import Tree, frozen, states

BLOCK = 4


def found(disk: Disk, length: int | None = None) -> set[object]:
    return {frozen(tree) for tree in states(disk, len(disk.log) if length is None else length, BLOCK)}


def only(*trees: Tree) -> set[object]:
    return {frozen(tree) for tree in trees}


def write(disk: Disk, path: Path, data: bytes, *, sync: bool) -> None:
    handle = disk.create(path)
    disk.write(handle, memoryview(data), 0)
    if sync:
        disk.sync(handle)
    disk.close(handle)


@pytest.fixture
def disk(memory: Path) -> Disk:
    (memory / "old").write_bytes(b"old!")
    return Disk(memory)


def test_what_was_there_at_the_start_stays(disk: Disk) -> None:
    """Nothing done, one state."""
    assert found(disk) == only({"old": b"old!"})


def test_a_synced_file_without_a_synced_name_is_whole_or_absent(memory: Path, disk: Disk) -> None:
    """Syncing a file says nothing of its name."""
    write(disk, memory / "new", b"abcd", sync=True)
    assert found(disk) == only({"old": b"old!"}, {"old": b"old!", "new": b"abcd"})
    disk.sync_folder(memory)
    assert found(disk) == only({"old": b"old!", "new": b"abcd"})


def test_an_unsynced_file_may_hold_anything_between(memory: Path, disk: Disk) -> None:
    """Any length in half blocks; each block new, torn, zero, or stale."""
    write(disk, memory / "new", b"abcd", sync=False)
    disk.sync_folder(memory)
    noise = b"\xa5"
    lengths = {0: [b""], 2: [b"ab", b"a\0", b"\0\0", noise * 2], 4: [b"abcd", b"ab\0\0", bytes(4), noise * 4]}
    expected = [{"old": b"old!", "new": content} for contents in lengths.values() for content in contents]
    assert found(disk) == only(*expected)


def test_bytes_may_be_written_in_any_order(memory: Path, disk: Disk) -> None:
    """Each goes to its place; what was left out reads as zero."""
    handle = disk.create(memory / "new")
    disk.write(handle, memoryview(b"efgh"), 4)
    disk.sync(handle)
    disk.sync_folder(memory)
    assert found(disk) == only({"old": b"old!", "new": b"\0\0\0\0efgh"})
    disk.write(handle, memoryview(b"abcd"), 0)
    disk.sync(handle)
    disk.close(handle)
    assert found(disk) == only({"old": b"old!", "new": b"abcdefgh"})


def test_the_number_of_states_is_the_one_that_is_stated(memory: Path, disk: Disk) -> None:
    """For a file of three blocks under one pending name."""
    write(disk, memory / "new", b"abcdefghijkl", sync=False)
    blocks, names = 3, 1
    most = 2**names * ((4 ** (blocks + 1) - 1) // 3 + (4 ** (blocks + 1) - 4) // 3)
    assert 100 < len(found(disk)) <= most


def test_names_are_durable_in_no_order(memory: Path, disk: Disk) -> None:
    """The second of two may be there without the first."""
    write(disk, memory / "a", b"", sync=True)
    write(disk, memory / "b", b"", sync=True)
    names = [set(dict(tree)) - {"old"} for tree in found(disk)]  # type: ignore[call-overload]
    assert sorted(map(sorted, names)) == [[], ["a"], ["a", "b"], ["b"]]


@pytest.mark.parametrize("synced", ["source", "target", None])
def test_a_rename_is_atomic_and_durable_with_either_folder(memory: Path, synced: str | None) -> None:
    """The file is in one place, never in both or in none."""
    for name in ("source", "target"):
        (memory / name).mkdir()
    (memory / "source" / "x").write_bytes(b"x")
    disk = Disk(memory)
    disk.rename(memory / "source" / "x", memory / "target" / "y")
    before: Tree = {"source": {"x": b"x"}, "target": {}}
    after: Tree = {"source": {}, "target": {"y": b"x"}}
    assert found(disk) == only(before, after)
    if synced:
        disk.sync_folder(memory / synced)
        assert found(disk) == only(after)


def test_a_removal_may_be_undone(memory: Path, disk: Disk) -> None:
    """Until its folder is synced."""
    disk.remove(memory / "old")
    assert found(disk) == only({"old": b"old!"}, {})
    disk.sync_folder(memory)
    assert found(disk) == only({})


def test_a_crash_in_the_middle_knows_nothing_of_what_came_later(memory: Path, disk: Disk) -> None:
    """States are those after a part of the log."""
    write(disk, memory / "new", b"abcd", sync=True)
    disk.sync_folder(memory)
    assert found(disk, 0) == only({"old": b"old!"})
