"""What a power cut may leave of the calls that a process has made: every state, from the rules of POSIX alone.

`states` enumerates what may be found after the power fails at a point of a `Disk`'s log. The rules are
the weakest that a disk may follow:

- ``fsync`` of a file makes its bytes and its length durable, not its name. ``fsync`` of a folder makes
  the names in it durable, not its own name.
- Of names that were set, removed or renamed since, any subset may be durable, in no order. One rename
  is atomic, also between two folders; ``fsync`` of either folder makes it durable.
- Of bytes written since, each block is durable on its own: new, old, torn in the middle, or (where a
  file grew) stale: noise, or the same block of an older file of the same name. The length is durable on
  its own too: any number of blocks, or a cut in the middle of one.
- What was durable stays so.

These are the "abstract persistence models" of Pillai et al., "All File Systems Are Not Created Equal"
(OSDI 2014), at their weakest: no write is ordered before another unless a sync says so.
Two things are assumed that POSIX leaves open, and that each journaling file system gives: a rename
is atomic, and a sync that returns without error has synced.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .disk import Data, Disk, Move, Name, Operation, Sync

Tree: TypeAlias = "dict[str, bytes | Tree]"
"""What a folder holds."""

_NOISE = b"\xa5"


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
