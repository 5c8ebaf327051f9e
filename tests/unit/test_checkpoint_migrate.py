"""Checkpoints of older formats become new ones of the present format, and nothing of the old ones changes.

``tests/formats/1`` is the root of a run that version 1 of the format wrote: `run` below to iteration 3, every second
state kept, without the last. Its arithmetic is exact, so its bits are the same on every machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Store, canonical, manifest, verify
from helios_fn.checkpoint.migrate import STEPS, Documents, Step, migrate, upgrade
from helios_fn.errors import CheckpointError, ResumeRefused, RootLocked

OLD = Path(__file__).parent.parent / "formats" / "1"
FOLDERS = ["tiny_epoch_0_iter_0", "tiny_epoch_0_iter_2"]


def step(state: hf.TrainState, batch: Any) -> hf.TrainState:
    (x,) = batch
    weight = (state.params["weight"] * 3 + x.sum(0)) % 9973
    half = state.params["half"] * 0.5 + float(x.sum() % 8)
    return state.replace(params={"weight": weight, "half": half}, metrics={"sum": x.sum().float()})


def fresh() -> hf.TrainState:
    params = {"weight": torch.arange(6).reshape(2, 3), "half": torch.tensor([1.0, -0.0, float("inf")])}
    return hf.init_state(params, seed=7, extra={"note": float("nan"), "big": 2**70})


def run(root: Path | None, total: int) -> hf.TrainState:
    data = torch.utils.data.TensorDataset(torch.arange(10 * 6).reshape(10, 2, 3))
    loader = hf.Loader(data, batch_size=2, shuffle=True)
    every = None if root is None else 2
    cfg = hf.RunConfig(unit="iteration", total=total, checkpoint_every=every, root=root, name="tiny", progress=False)
    return hf.run(step, fresh(), loader, cfg).state


class Volatile(FileSystem):
    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the old root."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def content(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def change_manifest(path: Path, **changes: Any) -> None:
    body = json.loads((path / "manifest.json").read_bytes()) | changes
    body.pop("digest")
    body["digest"] = manifest._digest(body)
    (path / "manifest.json").write_bytes(canonical.dump(body, indent=1))


def test_an_old_run_migrates_and_goes_on_to_the_same_bits(root: Path, tmp_path: Path) -> None:
    """As if it had never stopped, and never been of another format."""
    before = content(root)
    found = migrate(root, tmp_path / "new")
    assert [entry.old.name for entry in found] == FOLDERS
    assert [entry.new for entry in found] == [tmp_path / "new" / "checkpoints" / name for name in FOLDERS]
    assert all(entry.format == 1 and not entry.problem for entry in found)
    assert content(root) == before

    at_two = Store(tmp_path / "new", "tiny").newest()
    assert at_two is not None
    assert at_two.iteration == 2
    uninterrupted = run(None, 7)
    assert tree.digest(run(tmp_path / "new", 7)) == tree.digest(uninterrupted)
    assert (tmp_path / "new" / "checkpoints" / "tiny_epoch_1_iter_6").is_dir()


def test_what_is_migrated_is_what_the_present_version_would_have_written(root: Path, tmp_path: Path) -> None:
    """The tensor file byte for byte; a state that is loaded is saved again as the same files."""
    for entry in migrate(root):
        assert entry.new is not None
        assert entry.new.parent == root.with_name("old-migrated") / "checkpoints"
        for name in ("tensors.safetensors", "state.json"):
            assert (entry.new / name).read_bytes() == (entry.old / name).read_bytes()
        old, new = (json.loads((path / "manifest.json").read_bytes()) for path in (entry.old, entry.new))
        for field in ("run", "epoch", "iteration", "micro_step", "metadata", "versions", "record"):
            assert old[field] == new[field]
        assert (old["format"], new["format"]) == (1, manifest.FORMAT)


def test_a_second_call_keeps_what_the_first_has_written(root: Path) -> None:
    """So a call that was interrupted is simply made again."""
    first = migrate(root)
    before = content(root)
    assert migrate(root) == first
    assert content(root) == before


def test_a_migration_that_is_killed_leaves_nothing_that_looks_finished(root: Path, tmp_path: Path) -> None:
    """At whichever call of the file system; the next one finishes the work."""

    class Killed(BaseException):
        pass

    class Counting(Volatile):
        left = 0

        def __getattribute__(self, name: str) -> Any:
            method = super().__getattribute__(name)
            if name.startswith("_") or name in ("left", "close"):
                return method

            def call(*args: Any) -> Any:
                self.left -= 1
                if self.left < 0:
                    raise Killed
                return method(*args)

            return call

    allowed, finished = 0, False
    while not finished:
        files, target = Counting(), tmp_path / f"new{allowed}"
        files.left = allowed
        try:
            migrate(root, target, files=files)
            finished = True
        except Killed:
            for path in (target / "checkpoints").glob("tiny*"):
                verify(path)
            if allowed % 10 == 0:
                assert [entry.new and entry.new.name for entry in migrate(root, target)] == FOLDERS
        allowed += 1
    assert allowed > 50


def test_a_single_checkpoint_can_be_named(root: Path, tmp_path: Path) -> None:
    """Then the others are left alone."""
    (entry,) = migrate(root / "checkpoints" / FOLDERS[1], tmp_path / "new")
    assert entry.new is not None
    assert verify(entry.new).iteration == 2
    (entry,) = migrate(root / "checkpoints" / FOLDERS[1])
    assert entry.new == root.with_name("old-migrated") / "checkpoints" / FOLDERS[1]


def test_where_all_are_of_the_present_format_nothing_happens(tmp_path: Path) -> None:
    """And nothing is written."""
    run(tmp_path, 3)
    before = content(tmp_path)
    assert migrate(tmp_path) == []
    assert content(tmp_path) == before


def test_present_checkpoints_come_along(root: Path) -> None:
    """Or a resume from the new root would fall back behind them."""
    migrate(root)
    shutil.move(
        root.with_name("old-migrated") / "checkpoints" / FOLDERS[1], root / "checkpoints" / "tiny_epoch_0_iter_3"
    )
    shutil.rmtree(root.with_name("old-migrated"))
    found = migrate(root)
    assert [(entry.old.name[-1], entry.format) for entry in found] == [("0", 1), ("2", 1), ("3", 2)]
    assert all(verify(entry.new) for entry in found if entry.new)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_each_flipped_bit_of_an_old_checkpoint_is_noticed(root: Path, tmp_path: Path, name: str) -> None:
    """One bit of every 37th byte: nothing damaged is made to look sound, and the others are migrated."""
    path = root / "checkpoints" / FOLDERS[1] / name
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position // 37 % 8
        path.write_bytes(damaged)
        good, bad = migrate(root, tmp_path / str(position), files=Volatile())
        assert good.new is not None
        assert bad.new is None
        assert name in bad.problem
        assert "damaged" in bad.problem
        assert [path.name for path in (tmp_path / str(position) / "checkpoints").iterdir()] == FOLDERS[:1]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": []},
        {"files": {"state.json": {"size": 1, "sha256": "0" * 64}, "../x": {"size": 1, "sha256": ""}}},
        {"files": {name: {"size": 2**62, "sha256": "0"} for name in ("state.json", "tensors.safetensors")}},
        {"files": {name: {"size": -1, "sha256": "0"} for name in ("state.json", "tensors.safetensors")}},
        {"iteration": -1},
        {"another": 1},
        {"format": True},
        {"format": "1"},
    ],
)
def test_a_hostile_old_manifest_is_refused(root: Path, changes: Any) -> None:
    """Right digests do not make it right."""
    change_manifest(root / "checkpoints" / FOLDERS[1], **changes)
    assert [entry.new is None for entry in migrate(root)] == [False, True]


def test_an_old_root_is_not_resumed_but_the_command_is_named(root: Path) -> None:
    """The message names both formats, both versions and the command."""
    before = content(root)
    with pytest.raises(ResumeRefused) as caught:
        run(root, 7)
    message = str(caught.value)
    mine = manifest.versions()["helios_fn"]
    assert f"is in format 1, written by helios_fn unknown; helios_fn {mine} reads format {manifest.FORMAT}:" in message
    assert f"`python -m helios_fn migrate {root}`" in message
    assert {path: data for path, data in content(root).items() if path.name != "lock"} == before


def test_a_newer_format_is_refused_with_both_versions(root: Path) -> None:
    """By a resume and by a migration, which then writes nothing."""
    for name in FOLDERS:
        change_manifest(root / "checkpoints" / name, format=99, versions={"helios_fn": "9.8.7"})
    for call in (lambda: run(root, 7), lambda: migrate(root), lambda: verify(root / "checkpoints" / FOLDERS[0])):
        with pytest.raises(ResumeRefused, match=r"in format 99, written by helios_fn 9\.8\.7; .* reads format 2: use"):
            call()
    assert not (root.with_name("old-migrated")).exists()


def test_a_root_in_use_is_not_written_to(root: Path) -> None:
    """The new one, that is: the old one is only read."""
    migrate(root)
    with Store(root.with_name("old-migrated"), "tiny").lock(), pytest.raises(RootLocked):
        migrate(root)


def test_a_place_without_checkpoints_is_named(tmp_path: Path) -> None:
    """Whether there is nothing at all, or nothing in it."""
    with pytest.raises(CheckpointError, match="is not a folder"):
        migrate(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoints in /"):
        migrate(tmp_path)


def test_the_old_root_is_no_target(root: Path) -> None:
    """Nothing is ever written in place."""
    with pytest.raises(CheckpointError, match="stay as they are"):
        migrate(root, root)


def test_steps_are_chained_in_order() -> None:
    """From any format to any later one, each step once."""

    def tag(number: int) -> Step:
        return Step(lambda old: Documents(dict(old.manifest), [*old.state, number]))  # type: ignore[misc]

    steps = {number: tag(number) for number in range(1, 6)}
    for start in range(1, 6):
        for stop in range(start, 6):
            before = Documents({}, [])
            assert upgrade(before, start, stop, steps).state == list(range(start, stop))
            assert before.state == []


def test_there_is_a_step_from_every_format_to_the_present_one() -> None:
    """So that none is ever left behind."""
    assert sorted(STEPS) == list(range(1, manifest.FORMAT))


def test_a_step_may_rewrite_the_tensor_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the old documents and the old bytes; what does not fit the new documents is no checkpoint."""

    def lengthened(_: Documents, pieces: Any) -> Any:
        yield from pieces
        yield b"more"

    monkeypatch.setitem(STEPS, 1, Step(tensors=lengthened))  # type: ignore[arg-type]
    assert all("does not fit the state" in entry.problem for entry in migrate(root))
    assert list((root.with_name("old-migrated") / "checkpoints").iterdir()) == []
