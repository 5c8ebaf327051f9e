"""A file system that works as usual, and keeps a log of what it was asked to make durable and what not."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from .intercept import CALLS, Intercepted, Killed

_SILENT = {"listdir", "is_folder", "size", "read", "direct", "flush_soon"}  # the last two say how, and promise nothing
_LOGGED = {
    "mkdir", "rename", "remove", "rmdir", "create", "open", "allocate", "write", "sync", "close", "sync_folder",
}  # fmt: skip


class Name(NamedTuple):
    """A name in a folder now means ``target``; nothing, where that is ``None``."""

    folder: int
    name: str
    target: int | None


class Move(NamedTuple):
    """A name moved with what it means."""

    source: int
    name: str
    folder: int
    new_name: str
    target: int


class Data(NamedTuple):
    """Bytes written to a file."""

    target: int
    offset: int
    data: bytes


class Sync(NamedTuple):
    """A file or a folder made durable."""

    target: int


Operation: TypeAlias = Name | Move | Data | Sync


@dataclasses.dataclass
class _Handle:
    """An open file."""

    path: Path
    number: int


class Disk(Intercepted):
    """The folder ``top`` with a log; what is in it at the start is durable.

    Args:
        top: the folder. Calls must stay below it.
        without: the number of a sync (from 0, counted while armed) that is forgotten: it returns, and does nothing.
        kill_at: the number of a change (from 1, counted while armed) after which the process is dead.
    """

    def __init__(self, top: Path, *, without: int | None = None, kill_at: int | None = None) -> None:
        super().__init__()
        unknown = set(CALLS) - _SILENT - _LOGGED
        assert not unknown, f"say in {Path(__file__).name} what a power cut may leave of {sorted(unknown)}"
        self.log: list[Operation] = []
        self.synced: list[Path] = []  # what was synced while armed, the forgotten one included
        self.changes = 0
        self._top, self._without, self._kill_at = top, without, kill_at
        self._mutex = threading.RLock()
        self._numbers = itertools.count()
        self._folders: dict[int, dict[str, int]] = {}  # what each folder holds, by number
        self._handles: dict[int, _Handle] = {}
        self.base: dict[int, bytes | dict[str, int]] = {}
        self.stale: dict[str, bytes] = {}  # blocks that were never written hold an older file of the same name
        self.root = self._scan(top)

    def revive(self, without: int | None = None) -> None:
        """Go on as another process on the same machine: the kill is over, the log goes on, the counts start anew."""
        self._kill_at, self._without = None, without
        self._handles.clear()
        self.synced.clear()

    def call(self, name: str, effect: Callable[..., Any], *args: Any) -> Any:
        if name in _SILENT:
            return effect(*args)
        with self._mutex:
            if self.is_armed and self.changes == self._kill_at:
                if name == "close":
                    effect(*args)
                raise Killed
            result = effect(*args)
            if name not in ("open", "close"):
                self.changes += self.is_armed
            getattr(self, f"_{name}")(result, *args)
            return result

    def _scan(self, path: Path) -> int:
        number = next(self._numbers)
        if path.is_dir():
            self._folders[number] = {entry.name: self._scan(entry) for entry in sorted(path.iterdir())}
            self.base[number] = dict(self._folders[number])
        else:
            self.base[number] = self.stale[path.name] = path.read_bytes()
        return number

    def _find(self, path: Path) -> int:
        number = self.root
        for part in path.relative_to(self._top).parts:
            number = self._folders[number][part]
        return number

    def _set(self, path: Path, target: int | None) -> None:
        folder = self._find(path.parent)
        if target is None:
            del self._folders[folder][path.name]
        else:
            self._folders[folder][path.name] = target
        self.log.append(Name(folder, path.name, target))

    def _mkdir(self, _: None, path: Path) -> None:
        number = next(self._numbers)
        self._folders[number], self.base[number] = {}, {}
        self._set(path, number)

    def _create(self, handle: int, path: Path) -> None:
        number = next(self._numbers)
        self.base[number] = b""
        self._set(path, number)
        self._handles[handle] = _Handle(path, number)

    def _open(self, handle: int, path: Path) -> None:
        self._handles[handle] = _Handle(path, self._find(path))

    def _remove(self, _: None, path: Path) -> None:
        self._set(path, None)

    def _rmdir(self, _: None, path: Path) -> None:
        self._set(path, None)

    def _rename(self, _: None, source: Path, target: Path) -> None:
        before, after = self._find(source.parent), self._find(target.parent)
        number = self._folders[before].pop(source.name)
        self._folders[after][target.name] = number
        self.log.append(Move(before, source.name, after, target.name, number))

    def _allocate(self, _: None, handle: int, size: int) -> None:
        self.log.append(Data(self._handles[handle].number, 0, bytes(size)))

    def _write(self, count: int, handle: int, data: memoryview, start: int) -> None:
        self.log.append(Data(self._handles[handle].number, start, bytes(data[:count])))

    def _close(self, _: None, handle: int) -> None:
        del self._handles[handle]

    def _sync(self, _: None, handle: int) -> None:
        file = self._handles[handle]
        self._forget_or_log(file.path, file.number)

    def _sync_folder(self, _: None, path: Path) -> None:
        if path.is_relative_to(self._top):
            self._forget_or_log(path, self._find(path))

    def _forget_or_log(self, path: Path, number: int) -> None:
        if self.is_armed:
            self.synced.append(path)
            if len(self.synced) - 1 == self._without:
                return
        self.log.append(Sync(number))
