"""Whenever the power fails, and whatever the disk then holds: no completed checkpoint is lost."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest

from .disk import Disk
from .intercept import Killed
from .power import Tree, frozen, states, write_tree
from .scenes import BY_NAME, SCENES, Scene, newest_value, open_store, save
from .tally import Finding, Trial

COARSE, FINE = 1024, 256  # bytes per block; a file unsynced in b blocks has some 4^b states
WRITING = [scene for scene in SCENES if scene.name not in ("load", "save what is there")]
PLAIN = [scene for scene in SCENES if scene.name in ("save in a new root", "first save", "later save")]


class Machine:
    """Prepared folders, what was done in them, and the states after a power cut, each looked at once."""

    def __init__(self, scene: Scene, memory: Path, *, counted: bool = True) -> None:
        self.scene = scene
        self._memory = memory
        self._trial = Trial if counted else lambda kind: contextlib.nullcontext()
        self._seen: set[object] = set()

    def start(self, **options: int | None) -> tuple[Disk, Path]:
        """A disk on which the scene is prepared, and the prepared folder."""
        top = Path(tempfile.mkdtemp(dir=self._memory))
        self.scene.prepare(top / "run")
        return Disk(top, **options), top / "run"

    def check(
        self, tree: Tree, kind: str, right: frozenset[float | None], kept: frozenset[float | None] = frozenset()
    ) -> None:
        """The scene's law, in a state."""
        key = (right, kept, frozen(tree))
        if key not in self._seen:
            self._seen.add(key)
            folder = Path(tempfile.mkdtemp(dir=self._memory)) / "state"
            with self._trial(kind):
                write_tree(tree, folder)
                self.scene.check(folder / "run", right, kept)
            shutil.rmtree(folder)


def check_power_cuts(scene: Scene, memory: Path, block: int) -> None:
    machine = Machine(scene, memory)
    disk, folder = machine.start()
    scene.act(folder, disk)
    for length in range(len(disk.log) + 1):
        right = scene.right(returned=length == len(disk.log))
        for tree in states(disk, length, block):
            machine.check(tree, "power cut", right)


@pytest.mark.parametrize("scene", WRITING, ids=str)
def test_a_power_cut_at_any_call_loses_nothing_that_was_completed(scene: Scene, memory: Path) -> None:
    """The newest is the last completed one or the new one; and once the call has returned, it is the new one."""
    check_power_cuts(scene, memory, COARSE)


@pytest.mark.soak
@pytest.mark.parametrize("scene", WRITING, ids=str)
def test_a_power_cut_that_tears_small_blocks_loses_nothing(scene: Scene, memory: Path) -> None:
    """The same with four times as many blocks."""
    check_power_cuts(scene, memory, FINE)


def check_power_cuts_after_a_kill(machine: Machine, kill_at: int, without: int | None) -> bool:
    """One process is killed, the next recovers, goes on and saves, then the power fails.

    Returns:
        Whether there was anything left to kill.
    """
    scene = machine.scene
    disk, folder = machine.start(kill_at=kill_at)
    try:
        scene.act(folder, disk)
    except Killed:
        disk.revive(without)
    else:
        return False
    store = open_store(folder / scene.below, disk)
    with disk.armed():
        lock = store.lock()
    with lock:
        found = frozenset({newest_value(store)})
        for tree in states(disk, len(disk.log), COARSE):
            machine.check(tree, "kill, recovery, power cut", found, found)
        save(store, 49)
        for tree in states(disk, len(disk.log), COARSE):
            machine.check(tree, "kill, recovery, power cut", frozenset({49.0}), found)
    return True


def check_power_cuts_after_kills(machine: Machine, without: int | None = None) -> None:
    """Kill the first process after each of its changes."""
    for kill_at in itertools.count(0):
        if not check_power_cuts_after_a_kill(machine, kill_at, without):
            break


@pytest.mark.parametrize("scene", WRITING, ids=str)
def test_what_a_process_finds_after_a_kill_survives_a_power_cut(scene: Scene, memory: Path) -> None:
    """What the killed process had not synced is in memory only: who recovers it has to sync it."""
    check_power_cuts_after_kills(Machine(scene, memory))


def turns_red(scene: Scene, memory: Path, without: int) -> bool:
    """Whether some state breaks the law where one sync is forgotten."""
    machine = Machine(scene, memory, counted=False)
    disk, folder = machine.start(without=without)
    scene.act(folder, disk)
    try:
        for length in reversed(range(len(disk.log) + 1)):
            right = scene.right(returned=length == len(disk.log))
            for tree in states(disk, length, COARSE):
                machine.check(tree, "", right)
    except Finding:
        return True
    return False


def synced(scene: Scene, memory: Path) -> list[Path]:
    """What an act syncs, in order."""
    disk, folder = Machine(scene, memory).start()
    scene.act(folder, disk)
    return [path.relative_to(folder.parent) for path in disk.synced]


@pytest.mark.parametrize("scene", PLAIN, ids=str)
def test_a_save_needs_each_of_its_syncs(scene: Scene, memory: Path) -> None:
    """Each forgotten in turn, some state after a power cut breaks the law: the model sees what it is made for.

    A root also syncs what a killed process may have left, and tries whether it can; a fresh one needs neither.
    """
    needless = [path for path in synced(scene, memory) if path == Path() or "probe" in path.name]
    for number, path in enumerate(synced(scene, memory)):
        if path not in needless:
            assert turns_red(scene, memory, number), f"nobody would miss the sync of {path}"
    assert len(needless) <= 2


def test_a_save_in_anothers_place_needs_its_name_before_the_other_loses_its_own(memory: Path) -> None:
    """Else both are gone: the old one moved aside, and the new one not yet there."""
    scene = BY_NAME["save in another's place"]
    paths = synced(scene, memory)
    assert turns_red(scene, memory, paths.index(Path("run/checkpoints")))


def test_a_recovery_needs_its_syncs(memory: Path) -> None:
    """For some instant of the kill. The other files it could leave out: a manifest is written when they are synced."""
    paths = synced(BY_NAME["recovery by lock"], memory)
    needed = [number for number, path in enumerate(paths) if path.name not in ("state.json", "tensors.safetensors")]
    assert len(needed) == 3, "the manifest, the folder, its name"
    for without in needed:
        with pytest.raises(Finding):
            check_power_cuts_after_kills(Machine(BY_NAME["later save"], memory, counted=False), without)
