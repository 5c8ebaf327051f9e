"""Situations in which a store is interrupted, and the law that must hold afterwards.

A checkpoint here holds the tree `state(value)`; its record names the value, so that whoever finds a
checkpoint anywhere can tell whether it came back bit for bit. Everything goes through the public
`Store`: how a checkpoint is laid out inside is no business of this file.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helios_fn import Retention, tree
from helios_fn.checkpoint import OS, Checkpoint, FileSystem, Store
from helios_fn.errors import CheckpointError

from .intercept import Intercepted
from .tally import Finding, Outcome

RUN = "run"
NEXT = 50  # the iteration of the save that must work after all


def state(value: float) -> dict[str, Any]:
    """A small tree with two views of one memory, a stride, and scalars that text would spoil."""
    shared = torch.full((3, 4), float(value))
    return {
        "w": shared,
        "column": shared[:, 1],
        "n": [int(value), 2.5, None, "text", math.nan],
        "v": torch.arange(5, dtype=torch.uint8),
    }


def open_store(root: Path, files: FileSystem = OS) -> Store:
    return Store(root, RUN, files=files)


def save(store: Store, iteration: int, value: float | None = None) -> Path:
    value = float(iteration if value is None else value)
    counts = {"epoch": 0, "iteration": iteration, "micro_step": iteration}
    return store.save(state(value), record={"value": value}, **counts)


def value_of(store: Store, found: Checkpoint) -> float:
    """What a checkpoint holds, loaded and compared bit for bit."""
    value = float(found.record["value"])  # type: ignore[arg-type]
    different = tree.diff(store.load(found, state(0)), state(value))
    if different:
        raise Finding(Outcome.CORRUPT, f"{found.path} came back with other bits: {different}")
    return value


def newest_value(store: Store) -> float | None:
    newest = store.newest()
    return None if newest is None else value_of(store, newest)


def holdings(store: Store) -> set[float]:
    """The values of all valid checkpoints below the root, those moved aside included."""
    found = set()
    for parent, folders, files in os.walk(store.root):
        if not folders and files:
            found.add(_held(store, Path(parent)))
    return found - {None}


_KNOWN: dict[tuple[bytes, ...], float | None] = {}


def _held(store: Store, folder: Path) -> float | None:
    """The value of the checkpoint in a folder, ``None`` if it is not valid. Equal files are looked at once."""
    content = tuple(part for path in sorted(folder.iterdir()) for part in (path.name.encode(), path.read_bytes()))
    if content not in _KNOWN:
        try:
            _KNOWN[content] = value_of(store, store.at(folder))
        except CheckpointError:
            _KNOWN[content] = None
    return _KNOWN[content]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Something that a run does to its folder.

    Attributes:
        name: what is done.
        prepare: brings a fresh root into the situation.
        act: does it, through a file system that may fail once it is armed.
        kept: the values of the checkpoints completed before; none may be lost, though it may be moved aside.
        during: the right answers of ``newest`` while ``act`` has not returned.
        after: the right answer once it has.
        below: the root of the run, within the prepared folder.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path, Intercepted], object]
    kept: frozenset[float]
    during: frozenset[float | None]
    after: float | None
    below: str = ""

    def __str__(self) -> str:
        return self.name

    def right(self, *, returned: bool) -> frozenset[float | None]:
        """The right answers of ``newest``, by whether ``act`` has returned."""
        return frozenset({self.after}) if returned else self.during

    def check(self, folder: Path, right: frozenset[float | None], kept: frozenset[float | None] = frozenset()) -> None:
        """The law: what a process that starts now finds, in a folder that ``act`` was interrupted in or has left.

        Args:
            folder: was prepared, and changed since.
            right: the right answers of ``newest``.
            kept: other values that may not be lost.

        Raises:
            Finding: one is wrong, a checkpoint is gone, or the next save does not work.
        """
        try:
            store = open_store(folder / self.below)
            with store.lock():
                self._check_found(store, right, kept)
                save(store, NEXT)
                if newest_value(store) != NEXT:
                    raise Finding(Outcome.LOST, "the next save is not the newest")
        except CheckpointError as error:
            raise Finding(Outcome.LOST, f"the next start fails: {error}") from error

    def _check_found(self, store: Store, right: frozenset[float | None], kept: frozenset[float | None]) -> None:
        litter = [name for name in os.listdir(store.folder) if name.startswith(".")]
        if litter:
            raise Finding(Outcome.UNCLEAR, f"litter is left: {litter}")
        found = newest_value(store)
        if found not in right:
            raise Finding(Outcome.LOST, f"the newest is {found}, and must be one of {set(right)}")
        lost = (self.kept | kept | {found}) - {None} - holdings(store)
        if lost:
            raise Finding(Outcome.LOST, f"gone without a trace: {sorted(lost)}")


def _empty(root: Path) -> None:
    open_store(root)


def _two(root: Path) -> None:
    store = open_store(root)
    save(store, 1)
    save(store, 2)


def _leftover(root: Path) -> None:
    """Half of the third checkpoint, as a killed process leaves it."""
    _two(root)
    store = open_store(root)
    path = save(store, 3, value=33)
    path.rename(_unfinished(path))
    (_unfinished(path) / "manifest.json").unlink()


def _complete_leftover(root: Path) -> None:
    """All of the third checkpoint without its name, half of another one's, and one of an unknown name."""
    _two(root)
    store = open_store(root)
    path = save(store, 3)
    path.rename(_unfinished(path))
    half = save(store, 4)
    half.rename(_unfinished(half))
    os.truncate(_unfinished(half) / "state.json", 5)
    (store.folder / ".writing-other_epoch_0_iter_1").mkdir()


def _damaged_newest(root: Path) -> None:
    """Two sound checkpoints, and two newer ones that are not."""
    _two(root)
    store = open_store(root)
    os.truncate(save(store, 3) / "state.json", 5)
    os.truncate(save(store, 4) / "manifest.json", 0)


def _damaged_namesake(root: Path) -> None:
    """The third checkpoint, damaged."""
    _two(root)
    os.truncate(save(open_store(root), 3) / "tensors.safetensors", 9)


def _four(root: Path) -> None:
    _two(root)
    store = open_store(root)
    save(store, 3)
    save(store, 4)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".writing-{path.name}")


def _in_store(work: Callable[[Store], object]) -> Callable[[Path, Intercepted], object]:
    """An act inside a store that was opened without faults."""

    def act(root: Path, files: Intercepted) -> object:
        store = open_store(root, files)
        with files.armed():
            return work(store)

    return act


def _begin(folder: Path, files: Intercepted) -> None:
    with files.armed():
        save(open_store(folder / _BELOW, files), 3)


def _load(store: Store) -> None:
    if newest_value(store) != 2:
        raise Finding(Outcome.LOST, "another checkpoint was loaded")


def _go_back(store: Store) -> None:
    store.supersede(store.at(store.folder / f"{RUN}_epoch_0_iter_2"))


_saving = _in_store(lambda store: save(store, 3))
_BELOW = "new/root"
_TWO = frozenset({1.0, 2.0})
SCENES = [
    Scene("save in a new root", Path.mkdir, _begin, frozenset(), frozenset({None, 3.0}), 3.0, below=_BELOW),
    Scene("first save", _empty, _saving, frozenset(), frozenset({None, 3.0}), 3.0),
    Scene("later save", _two, _saving, _TWO, frozenset({2.0, 3.0}), 3.0),
    Scene("save what is there", _two, _in_store(lambda store: save(store, 2)), _TWO, frozenset({2.0}), 2.0),
    Scene("save over a leftover", _leftover, _saving, _TWO, frozenset({2.0, 3.0}), 3.0),
    Scene(
        "save in another's place",
        _two,
        _in_store(lambda store: save(store, 2, value=7)),
        _TWO,
        frozenset({2.0, 7.0}),
        7.0,
    ),
    Scene("save in a damaged one's place", _damaged_namesake, _saving, _TWO, frozenset({2.0, 3.0}), 3.0),
    Scene(
        "recovery by lock",
        _complete_leftover,
        _in_store(lambda store: store.lock().release()),
        _TWO | {3.0},
        frozenset({3.0}),
        3.0,
    ),
    Scene("load", _two, _in_store(_load), _TWO, frozenset({2.0}), 2.0),
    Scene("newest", _damaged_newest, _in_store(lambda store: store.newest()), _TWO, frozenset({2.0}), 2.0),
    Scene(
        "prune",
        _four,
        _in_store(lambda store: store.prune(Retention(last=2))),
        frozenset({3.0, 4.0}),
        frozenset({4.0}),
        4.0,
    ),
    Scene("supersede", _four, _in_store(_go_back), _TWO | {3.0, 4.0}, frozenset({4.0, 3.0, 2.0}), 2.0),
]
BY_NAME = {scene.name: scene for scene in SCENES}
