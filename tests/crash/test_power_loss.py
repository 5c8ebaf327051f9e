"""Whenever the power fails, and whatever the disk then holds: no completed checkpoint is lost."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path

import pytest

from .intercept import Killed
from .power import Disk, Tree, frozen, states, write_tree
from .scenes import BY_NAME, SCENES, Scene, newest_value, open_store, save
from .tally import Finding, Trial

COARSE, FINE = 1024, 256  # bytes per block: a state counts as many blocks as its unsynced file has
WRITING = [scene for scene in SCENES if scene.name not in ("load", "save what is there")]


class Machine:
    """Prepared folders, what was done in them, and the states after a power cut, each looked at once."""

    def __init__(self, scene: Scene, memory: Path) -> None:
        self.scene = scene
        self._memory = memory
        self._count = itertools.count()
        self._seen: set[object] = set()
        self.tried = 0

    def start(self, **options: int | None) -> tuple[Disk, Path]:
        top = self._memory / f"machine-{next(self._count)}"
        top.mkdir()
        self.scene.prepare(top / "run")
        return Disk(top, **options), top / "run"

    def check(self, tree: Tree, kind: str, right: frozenset[float | None], kept: frozenset[float | None]) -> None:
        key = (right, kept, frozen(tree))
        if key in self._seen:
            return
        self._seen.add(key)
        self.tried += 1
        folder = self._memory / "state"
        with Trial(kind):
            write_tree(tree, folder)
            self.scene.check(folder / "run", right, kept)
        shutil.rmtree(folder)

    def check_all(self, disk: Disk, kind: str, block: int) -> None:
        """Cut the power after each operation of an act that has returned."""
        for length in range(len(disk.log) + 1):
            right = self.scene.right(returned=length == len(disk.log))
            for tree in states(disk, length, block):
                self.check(tree, kind, right, frozenset())


def check_power_cuts(scene: Scene, memory: Path, block: int) -> int:
    machine = Machine(scene, memory)
    disk, folder = machine.start()
    scene.act(folder, disk)
    machine.check_all(disk, "power cut", block)
    return machine.tried


@pytest.mark.parametrize("scene", WRITING, ids=str)
def test_a_power_cut_at_any_call_loses_nothing_that_was_completed(scene: Scene, memory: Path) -> None:
    """The newest is the last completed one or the new one; and once the call has returned, it is the new one."""
    check_power_cuts(scene, memory, COARSE)


def check_power_cuts_after_kills(scene: Scene, memory: Path, block: int) -> None:
    machine = Machine(scene, memory)
    for kill_at in itertools.count(0):
        disk, folder = machine.start(kill_at=kill_at)
        with contextlib.suppress(Killed):
            scene.act(folder, disk)
            return
        disk.revive()
        store = open_store(folder / scene.below, disk)
        with store.lock():
            found = frozenset({newest_value(store)})
            for tree in states(disk, len(disk.log), block):
                machine.check(tree, "kill, recovery, power cut", found, found)
            save(store, 49)
            for tree in states(disk, len(disk.log), block):
                machine.check(tree, "kill, recovery, power cut", frozenset({49.0}), found)


@pytest.mark.parametrize("scene", WRITING, ids=str)
def test_what_a_process_found_after_a_kill_survives_a_power_cut(scene: Scene, memory: Path) -> None:
    """What the killed process had written but not synced was only in memory: who recovers it has to sync it."""
    check_power_cuts_after_kills(scene, memory, COARSE)


def violation(scene: Scene, memory: Path, without: int) -> Finding | None:
    """How the law breaks where one sync is forgotten."""
    machine = Machine(scene, memory)
    disk, folder = machine.start(without=without)
    scene.act(folder, disk)
    assert disk.syncs > without, "there is no such sync"
    try:
        for length in reversed(range(len(disk.log) + 1)):
            right = scene.right(returned=length == len(disk.log))
            for tree in states(disk, length, COARSE):
                write_tree(tree, memory / "broken")
                scene.check(memory / "broken" / "run", right)
                shutil.rmtree(memory / "broken")
    except Finding as finding:
        return finding
    return None


def syncs(scene: Scene, memory: Path) -> int:
    disk, folder = Machine(scene, memory / "count").start()
    scene.act(folder, disk)
    return disk.syncs
