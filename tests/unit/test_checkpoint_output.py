"""Files on their way to the disk: the same bytes and checksums, however many threads write them and by which way."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helios_fn.checkpoint import FileSystem
from helios_fn.checkpoint.aside import spread
from helios_fn.checkpoint.checksum import CHUNK, entry_of
from helios_fn.checkpoint.output import BLOCK, WRITERS, write_file

NOISE = random.Random(0).randbytes(2 * CHUNK + 3 * BLOCK + 12345)


class Watched(FileSystem):
    """Without syncs, which take long, and with a look at each write: none may come after its file was closed."""

    def __init__(self) -> None:
        self.is_direct = self.is_open = False
        self.ways: set[bool] = set()
        self.late = 0

    def create(self, path: Path) -> int:
        self.is_open = True
        return super().create(path)

    def direct(self, handle: int, on: bool) -> bool:
        self.is_direct = super().direct(handle, on)
        return self.is_direct

    def write(self, handle: int, data: memoryview, start: int) -> int:
        self.late += not self.is_open
        self.ways.add(self.is_direct)
        return super().write(handle, data, start)

    def sync(self, handle: int) -> None:
        pass

    def close(self, handle: int) -> None:
        self.is_open = False
        super().close(handle)


class NeverDirect(Watched):
    """As on a file system that has nothing of the kind."""

    def direct(self, handle: int, on: bool) -> bool:
        return False


class OnlyPretends(Watched):
    """As one that finds out when something is written."""

    def direct(self, handle: int, on: bool) -> bool:
        self.is_direct = on
        return on

    def write(self, handle: int, data: memoryview, start: int) -> int:
        if self.is_direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().write(handle, data, start)


class Sparing(Watched):
    """Writes a little less than it is asked to, so that what is left is not aligned."""

    def write(self, handle: int, data: memoryview, start: int) -> int:
        return super().write(handle, data[: max(1, len(data) - 1000)], start)


def pieces(size: int) -> Iterator[bytes]:
    """So many bytes: at first few at a time, then all the rest."""
    start = 0
    for length in (0, 1, 7, 4096, 100_003):
        yield NOISE[start : min(start + length, size)]
        start = min(start + length, size)
    yield NOISE[start:size]


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("size", [0, 1, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(NOISE)])
def test_a_file_holds_what_it_was_given(tmp_path: Path, size: int, threaded: bool) -> None:
    """Every byte at its place, and the checksums are those of the bytes."""
    found = write_file(Watched(), tmp_path / "file", pieces(size), size=size, threaded=threaded)
    assert (tmp_path / "file").read_bytes() == NOISE[:size]
    assert found == entry_of(NOISE[:size])


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("kind", [NeverDirect, OnlyPretends, Sparing])
def test_what_the_file_system_cannot_do_is_not_to_be_seen(tmp_path: Path, kind: type[Watched], threaded: bool) -> None:
    """Where it takes nothing directly, says so late, or takes a part: the bytes go through the page cache."""
    files = kind()
    found = write_file(files, tmp_path / "file", pieces(len(NOISE)), size=len(NOISE), threaded=threaded)
    assert (tmp_path / "file").read_bytes() == NOISE
    assert found == entry_of(NOISE)
    assert False in files.ways


def test_only_whole_chunks_are_written_directly(tmp_path: Path) -> None:
    """What is small, and the end of what is large, takes the usual way."""
    for size, ways in ((CHUNK - 1, {False}), (CHUNK, {True}), (CHUNK + 1, {True, False})):
        files = Watched()
        write_file(files, tmp_path / str(size), pieces(size), size=size)
        possible = files.direct(os.open(tmp_path / str(size), os.O_WRONLY), True)
        assert files.ways == (ways if possible else {False})


def test_a_file_of_unknown_length_takes_the_usual_way(tmp_path: Path) -> None:
    """Without space set aside, direct writes would wait for each other."""
    files = Watched()
    assert write_file(files, tmp_path / "file", pieces(len(NOISE))) == entry_of(NOISE)
    assert files.ways == {False}


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    """Where space can be set aside, a save that does not fit costs no time."""

    class Full(Watched):
        def direct(self, handle: int, on: bool) -> bool:
            return on

        def allocate(self, handle: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        def write(self, handle: int, data: memoryview, start: int) -> int:
            raise AssertionError

    with pytest.raises(OSError, match="full"):
        write_file(Full(), tmp_path / "file", pieces(len(NOISE)), size=len(NOISE))


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_sets_no_space_aside_gets_the_same_bytes(tmp_path: Path, monkeypatch, code: int) -> None:
    """It says so, and is not asked again."""

    def refuse(handle: int, start: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert write_file(Watched(), tmp_path / "file", pieces(len(NOISE)), size=len(NOISE)) == entry_of(NOISE)
    assert (tmp_path / "file").read_bytes() == NOISE


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EINVAL, "no"), KeyboardInterrupt()])
def test_an_error_surfaces_when_all_threads_have_ended(tmp_path: Path, error: BaseException, threaded: bool) -> None:
    """Nobody writes to a file that is closed: its number may be another file's by then."""

    class Failing(NeverDirect):
        def write(self, handle: int, data: memoryview, start: int) -> int:
            if start == BLOCK:
                raise error
            return super().write(handle, data, start)

    files, before = Failing(), threading.active_count()
    with pytest.raises(type(error)) as caught:
        write_file(files, tmp_path / "file", pieces(len(NOISE)), size=len(NOISE), threaded=threaded)
    assert caught.value is error
    assert (files.is_open, files.late, threading.active_count()) == (False, 0, before)


def test_an_error_of_the_content_surfaces(tmp_path: Path) -> None:
    """As when a device fails while a tensor is copied from it."""

    def broken() -> Iterator[bytes]:
        yield NOISE[:CHUNK]
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        write_file(Watched(), tmp_path / "file", broken(), size=2 * CHUNK, threaded=True)


# Threads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, WRITERS])
def test_each_item_is_taken_once(threads: int) -> None:
    """By one thread in order, by several in any."""
    done: list[int] = []
    spread(done.append, iter(range(100)), threads=threads)
    assert sorted(done) == list(range(100))
    assert threads > 1 or done == sorted(done)
    spread(done.append, [], threads=threads)
    assert len(done) == 100


@pytest.mark.parametrize("threads", [1, WRITERS])
def test_an_error_of_spread_work_surfaces(threads: int) -> None:
    """Once the other threads have ended; what had not begun never does."""
    before, done = threading.active_count(), []

    def work(number: int) -> None:
        if number == 5:
            raise MemoryError("no more")
        done.append(number)

    with pytest.raises(MemoryError, match="no more"):
        spread(work, range(1000), threads=threads)
    assert len(done) < 999
    assert threading.active_count() == before


def test_where_no_thread_can_be_started_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter is shutting down: the caller does it all."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    spread(done.append, range(9), threads=WRITERS)
    assert done == list(range(9))


def test_an_interrupt_waits_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they work with is there until they have ended, however impatient somebody is."""
    begun, ended, join = threading.Barrier(2), threading.Event(), threading.Thread.join
    interrupts = iter([KeyboardInterrupt(), KeyboardInterrupt()])

    def impatient(self: threading.Thread, timeout: float | None = None) -> None:
        for interrupt in interrupts:
            raise interrupt
        join(self, timeout)

    def work(number: int) -> None:
        begun.wait(30)
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.05)
            ended.set()

    monkeypatch.setattr(threading.Thread, "join", impatient)
    with pytest.raises(KeyboardInterrupt):
        spread(work, range(2), threads=2)
    assert ended.is_set()
