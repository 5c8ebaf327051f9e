"""What a power cut may leave of the calls that a process has made: every state, from the rules of POSIX alone.

`Disk` is a file system that works as usual and keeps a log. `states` enumerates what may be found
after the power fails at a point of the log. The rules, from the weakest that a disk may give:

- ``fsync`` of a file makes its bytes and its length durable, not its name. ``fsync`` of a folder makes
  the names in it durable, not its own name.
- Of names that were set, removed or renamed since, any subset may be durable, in no order. One rename
  is atomic, also between two folders; ``fsync`` of either folder makes it durable.
- Of bytes written since, each block is durable on its own: new, old, torn in the middle, or (where a
  file grew) stale: noise, or the same block of an older file of the same name. The length is durable on
  its own too: any number of blocks, or a cut in the middle of one.
- What was durable stays so.

These are the "abstract persistence models" of Pillai et al., "All File Systems Are Not Created Equal"
(OSDI 2014), section 4, at their weakest: no write is ordered before another unless a sync says so.
Two things are assumed that POSIX leaves open, and that each journaling file system gives: a rename
is atomic, and a sync that returns without error has synced.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from .intercept import CALLS, Intercepted, Killed

Tree: TypeAlias = "dict[str, bytes | Tree]"
"""What a folder holds."""

_SILENT = {"listdir", "is_folder", "size", "read", "flush_soon"}  # the last starts a write, and promises nothing
_LOGGED = {"mkdir", "rename", "remove", "rmdir", "create", "open", "write", "sync", "close", "sync_folder"}

_NOISE = b"\xa5"


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
    position: int = 0


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

    def _write(self, count: int, handle: int, data: memoryview) -> None:
        file = self._handles[handle]
        self.log.append(Data(file.number, file.position, bytes(data[:count])))
        file.position += count

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


def states(disk: Disk, length: int, block: int) -> Iterator[Tree]:
    """All that may be found under ``disk``'s top if the power fails after the first ``length`` operations.

    States that differ in what no path leads to are one state. The first is the one in which
    nothing that is not durable has survived. With p names pending and one file of b blocks unsynced
    there are at most 2^p times ``(4^(b+1) - 1) / 3 + (4^(b+1) - 4) / 3`` states.
    """
    log = disk.log[:length]
    names = {number: dict(content) for number, content in disk.base.items() if isinstance(content, dict)}
    last_sync = {operation.target: at for at, operation in enumerate(log) if isinstance(operation, Sync)}
    certain, pending = [], []
    for at, operation in enumerate(log):
        if isinstance(operation, Name | Move):
            touched = [operation.folder, operation.source] if isinstance(operation, Move) else [operation.folder]
            durable = any(last_sync.get(folder, -1) > at for folder in touched)
            (certain if durable else pending).append((at, operation))
    files = _Files(disk, log, last_sync, block)
    seen = set()
    for kept in _subsets(pending):
        folders = _apply(names, sorted(certain + list(kept)))
        shape = _shape(folders, disk.root)
        if shape not in seen:
            seen.add(shape)
            yield from _with_contents(folders, disk.root, files)


def _subsets(items: list[Any]) -> Iterator[tuple[Any, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, size) for size in range(len(items) + 1))


def _apply(names: dict[int, dict[str, int]], operations: list[tuple[int, Any]]) -> dict[int, dict[str, int]]:
    folders = {number: dict(content) for number, content in names.items()}
    for _, operation in operations:
        if isinstance(operation, Move):
            folders[operation.source].pop(operation.name, None)
            folders[operation.folder][operation.new_name] = operation.target
        elif operation.target is None:
            folders[operation.folder].pop(operation.name, None)
        else:
            folders[operation.folder][operation.name] = operation.target
    return folders


def _shape(folders: dict[int, dict[str, int]], number: int) -> Any:
    if number not in folders:
        return number
    return tuple((name, target, _shape(folders, target)) for name, target in sorted(folders[number].items()))


class _Files:
    """What each file may hold."""

    def __init__(self, disk: Disk, log: list[Operation], last_sync: dict[int, int], block: int) -> None:
        self._disk, self._log, self._last_sync, self._block = disk, log, last_sync, block
        self._known: dict[int, list[bytes]] = {}

    def __call__(self, number: int, name: str) -> list[bytes]:
        """The possible contents of a file."""
        if number not in self._known:
            durable = current = bytes(self._disk.base[number])
            for at, operation in enumerate(self._log):
                if isinstance(operation, Data) and operation.target == number:
                    start, end = operation.offset, operation.offset + len(operation.data)
                    current = current.ljust(start, b"\0")[:start] + operation.data + current[end:]
                if at == self._last_sync.get(number):
                    durable = current
            stale = self._disk.stale.get(name, b"")
            self._known[number] = list(dict.fromkeys(_contents(durable, current, self._block, stale)))
        return self._known[number]


def _contents(durable: bytes, current: bytes, block: int, stale: bytes) -> Iterator[bytes]:
    """What a file may hold between two contents of which the second is not durable."""
    cuts = range(0, len(current), max(1, block // 2)) if durable != current else []
    for length in [len(durable), *(cut for cut in cuts if cut > len(durable)), len(current)]:
        old = durable[:length].ljust(length, b"\0")
        pieces = [
            _block_contents(old[at : at + block], current[at : at + block][: length - at], stale[at : at + block])
            for at in range(0, length, block)
        ]
        for chosen in itertools.product(*pieces):
            yield b"".join(chosen)


def _block_contents(old: bytes, new: bytes, stale: bytes) -> list[bytes]:
    if old == new:
        return [new]
    half = len(new) // 2
    garbage = [] if old.strip(b"\0") else [stale.ljust(len(new), _NOISE)[: len(new)]]
    return list(dict.fromkeys([old, new, new[:half] + old[half:], *garbage]))


def _with_contents(folders: dict[int, dict[str, int]], number: int, files: _Files) -> Iterator[Tree]:
    """All trees of one shape."""
    where: list[tuple[tuple[str, ...], list[bytes]]] = []

    def collect(folder: int, path: tuple[str, ...]) -> None:
        for name, target in folders[folder].items():
            if target in folders:
                collect(target, (*path, name))
            else:
                where.append(((*path, name), files(target, name)))

    def build(folder: int, path: tuple[str, ...], content: dict[tuple[str, ...], bytes]) -> Tree:
        return {
            name: build(target, (*path, name), content) if target in folders else content[(*path, name)]
            for name, target in folders[folder].items()
        }

    collect(number, ())
    for chosen in itertools.product(*(contents for _, contents in where)):
        yield build(number, (), dict(zip((path for path, _ in where), chosen, strict=True)))


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder that holds a state."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_tree(content, folder / name)


def frozen(tree: Tree) -> Any:
    """A state as a key."""
    return tuple(
        (name, content if isinstance(content, bytes) else frozen(content)) for name, content in sorted(tree.items())
    )
