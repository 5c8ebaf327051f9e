"""Which checkpoints stay: laws of the decision, and of carrying it out whatever fails and whenever it is killed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.checkpoint import FileSystem, Store, verify
from helios_fn.checkpoint.names import REMOVED
from helios_fn.checkpoint.retention import Entry, ranked, retained
from helios_fn.config import EarlyStop, Retention, RunConfig

from ..strategies import examples

LAWS = settings(deadline=None, max_examples=examples(60))
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])


@st.composite
def histories(draw) -> list[Entry]:
    """The checkpoints of a run, oldest first: validated now and then, the metrics repeated until the next cycle."""
    entries: list[Entry] = []
    iteration, cycle, metrics = 0, 0, {}
    for gap, value in draw(st.lists(st.tuples(st.integers(1, 7), st.none() | VALUES), max_size=12)):
        entries.append(Entry(f"run_epoch_0_iter_{iteration}", iteration, iteration, metrics, cycle))
        iteration += gap
        if value is not None:
            cycle, metrics = cycle + 1, {"loss": value}
    return entries


@st.composite
def policies(draw) -> Retention:
    last = draw(st.none() | st.integers(1, 5))
    best = draw(st.integers(0, 4))
    every = draw(st.none() | st.integers(1, 12))
    if last is None and every is None and not best:
        best = 1
    return Retention(last, best, "loss" if best else None, draw(st.sampled_from(["min", "max"])), every)


def names(entries) -> set[str]:
    return {entry.name for entry in entries}


def expected(entries: list[Entry], policy: Retention) -> set[str]:
    """The policy once more, naively: entries are given oldest first."""
    kept = names(entries[-max(2, policy.last or 0) :])
    validated = [entry for before, entry in itertools.pairwise([None, *entries]) if starts_a_cycle(before, entry)]
    sign = 1 if policy.mode == "min" else -1
    validated.sort(key=lambda entry: sign * entry.metrics["loss"])  # stable: of equal ones the earlier comes first
    kept |= names(validated[: policy.best])
    for multiple in range(0, entries[-1].iteration + 1, policy.every) if policy.every and entries else ():
        period = [entry for entry in entries if multiple <= entry.iteration < multiple + policy.every]
        kept |= names(period[:1])
    return kept


def starts_a_cycle(before: Entry | None, entry: Entry) -> bool:
    value = entry.metrics.get("loss", math.nan)
    return not math.isnan(value) and (before is None or before.cycle != entry.cycle)


@LAWS
@given(histories(), policies())
def test_the_kept_ones_are_those_of_the_naive_rules(entries, policy):
    """The two newest, the last K, the first checkpoint of the best M cycles, the first of each period; no others."""
    assert names(retained(entries, policy)) == expected(entries, policy)


@LAWS
@given(histories(), policies(), st.data())
def test_the_decision_depends_on_the_set_alone(entries, policy, data):
    """Not on the order in which a folder is listed."""
    shuffled = data.draw(st.permutations(entries))
    assert names(retained(shuffled, policy)) == names(retained(entries, policy))


@LAWS
@given(histories(), policies())
def test_deciding_twice_changes_nothing(entries, policy):
    """What is kept once is kept again when the rest is gone."""
    kept = retained(entries, policy)
    assert retained(kept, policy) == kept


@LAWS
@given(histories(), policies(), st.integers(0, 12))
def test_no_decision_is_regretted(entries, policy, count):
    """Pruning on the way, as after a resume, leaves what one decision at the end would have left."""
    early = retained(entries[:count], policy)
    assert names(retained(early + entries[count:], policy)) == names(retained(entries, policy))


@LAWS
@given(histories(), policies())
def test_what_every_keeps_is_kept_for_ever(entries, policy):
    """However many newer ones there are."""
    every = Retention(every=policy.every or 3)
    for count in range(3, len(entries) + 1):
        forever = names(retained(entries[: count - 2], every)) - names(entries[: count - 2][-2:])
        assert forever <= names(retained(entries[:count], every))


def entry(iteration: int, value: float, cycle: int | None = None) -> Entry:
    return Entry(f"c{iteration}", iteration, iteration, {"m": value}, cycle)


def test_without_cycles_in_the_manifest_equal_values_count_once():
    """Manifests of earlier versions did not tell which checkpoints repeat a value."""
    found = ranked([entry(1, 5.0), entry(2, 5.0), entry(3, 4.0), entry(4, 5.0), entry(5, math.nan)], "m", "max")
    assert [each.iteration for each in found] == [1, 3]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, ValueError, "has no rule"),
        ({"monitor": "loss"}, ValueError, "has no rule"),
        ({"best": 2}, ValueError, "set monitor"),
        ({"last": 0}, ValueError, "Retention.last must be an integer of at least 1"),
        ({"every": 1.5}, ValueError, "Retention.every"),
        ({"best": -1, "last": 2}, ValueError, "Retention.best"),
        ({"last": 1, "mode": "least"}, ValueError, "Retention.mode must be one of 'min', 'max'"),
        ({"last": 1, "monitor": 3}, TypeError, "name of a metric"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(keywords, error, message):
    """At construction."""
    with pytest.raises(error, match=message):
        Retention(**keywords)


ACCURACY = Retention(best=1, monitor="accuracy", mode="max")


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"retention": 3}, TypeError, "must be an hf.Retention"),
        ({"retention": Retention(last=2), "root": None}, ValueError, "set root"),
        ({"retention": ACCURACY, "validate_every": None}, ValueError, "set validate_every"),
        ({"retention": ACCURACY, "early_stop": EarlyStop("accuracy", 3)}, ValueError, "different modes"),
        ({"retention": ACCURACY, "early_stop": EarlyStop("loss", 3), "resume": "best"}, ValueError, "accuracy and"),
        ({"retention": Retention(last=2), "resume": "best"}, ValueError, "set retention or early_stop"),
    ],
)
def test_contradictions_are_refused_at_the_border(keywords, error, message):
    """Before anything is read or written."""
    with pytest.raises(error, match=message):
        RunConfig(**{"unit": "iteration", "total": 4, "root": "x", "validate_every": 1, **keywords})


# Carrying it out.


class Killed(BaseException):
    """The process ends here: no handler may run."""


class Disk(FileSystem):
    """Fails at the ``n``-th call, or is dead from then on; keeps the names of all calls."""

    def __init__(self, n: float = math.inf, error: Callable[[], BaseException] = Killed) -> None:
        self.calls: list[tuple[str, str]] = []
        self.reads: list[Path] = []
        self._open: dict[int, Path] = {}
        self._n, self._error = n, error

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name.startswith("_") or name in ("calls", "reads"):
            return method

        def call(*args: Any) -> Any:
            self.calls.append((name, str(args[0])))
            error = self._error()
            if len(self.calls) == self._n or (len(self.calls) > self._n and isinstance(error, Killed)):
                if name == "close":  # the number is given back even where the call fails
                    method(*args)
                raise error
            result = None if name.startswith("sync") else method(*args)
            if name == "open":
                self._open[result] = args[0]
            if name == "read":
                self.reads.append(self._open[args[0]])
            return result

        return call


def save(store: Store, i: int, name: str = "") -> Path:
    record = {"validation": {"loss": str(float(abs(i - 3)))}, "cycles": i}
    state = {"w": torch.full((50,), float(i))}
    return store.save(state, epoch=0, iteration=i, micro_step=i, record=record, metadata=name)


def filled(root: Path, count: int = 7, files: FileSystem | None = None, run: str = "run") -> Store:
    store = Store(root, run, files=files or Disk())
    for i in range(count):
        save(store, i)
    return store


def iterations(store: Store) -> list[int]:
    return sorted(checkpoint.iteration for checkpoint in store.entries())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


POLICY = Retention(last=2, best=1, monitor="loss", every=4)
KEPT = [0, 3, 4, 5, 6]


def test_pruning_removes_what_the_policy_does_not_keep(tmp_path):
    """And says what it removed; a second call removes nothing."""
    store = filled(tmp_path)
    assert [path.name for path in store.prune(POLICY)] == ["run_epoch_0_iter_1", "run_epoch_0_iter_2"]
    assert iterations(store) == KEPT
    assert store.prune(POLICY) == []
    assert sorted(path.name for path in store.folder.iterdir()) == [f"run_epoch_0_iter_{i}" for i in KEPT]


@pytest.mark.parametrize("error", [Killed, lambda: OSError(errno.EIO, "broken")], ids=["killed", "EIO"])
def test_whatever_call_of_pruning_fails_all_that_is_left_is_whole(tmp_path, in_memory, error):
    """At each call: what is kept is there and valid, and the next start finishes the work."""
    calls = len(count_calls(tmp_path / "count"))
    filled(tmp_path / "filled", 5)
    for n in range(1, calls + 1):
        root = Path(tempfile.mkdtemp(dir=in_memory))
        shutil.copytree(tmp_path / "filled", root, dirs_exist_ok=True)
        disk = Disk()
        store = Store(root, "run", files=disk)
        disk.calls.clear()
        disk._n, disk._error = n, error
        with pytest.raises((Killed, hf.CheckpointError)):
            store.prune(POLICY)
        again = Store(root, "run", files=Disk())
        left = iterations(again)
        assert {0, 3, 4} <= set(left)
        assert not again.damaged()
        for checkpoint in again.entries():
            verify(checkpoint.path)
        with again.lock():
            assert iterations(again) == left
            assert not list(again.folder.glob(".*"))
            again.prune(POLICY)
        assert iterations(again) == [0, 3, 4]


@pytest.fixture
def in_memory():
    with tempfile.TemporaryDirectory() as name:
        yield name


def count_calls(root: Path) -> list[tuple[str, str]]:
    filled(root, 5)
    disk = Disk()
    store = Store(root, "run", files=disk)
    disk.calls.clear()
    store.prune(POLICY)
    return disk.calls


def test_nothing_is_deleted_before_its_new_name_is_durable(tmp_path):
    """Otherwise losing power could leave half of a folder that bears the name of a checkpoint."""
    renamed, durable = set(), set()
    for name, argument in count_calls(tmp_path):
        if name == "rename":
            renamed.add(REMOVED + Path(argument).name)
        elif name == "sync_folder":
            durable |= renamed
        elif name in ("remove", "rmdir"):
            assert durable & {Path(argument).name, Path(argument).parent.name}, argument
    assert len(durable) == 2


def test_what_a_killed_process_renamed_is_not_deleted_before_that_is_durable(tmp_path):
    """It may have been killed before it could see to that itself."""
    store = filled(tmp_path, 3, files=(disk := Disk()))
    (store.folder / "run_epoch_0_iter_0").rename(store.folder / f"{REMOVED}run_epoch_0_iter_0")
    disk.calls.clear()
    with store.lock():
        calls = [name for name, _ in disk.calls]
    assert "sync_folder" in calls[: calls.index("remove")]
    assert iterations(store) == [1, 2]


def test_newer_names_are_made_durable_before_older_ones_are_given_up(tmp_path):
    """The process that wrote the newest may have been killed before it could."""
    calls = [name for name, _ in count_calls(tmp_path)]
    assert "sync_folder" in calls[: calls.index("rename")]


def test_a_damaged_checkpoint_does_not_count_and_is_not_touched(tmp_path, caplog):
    """The two newest valid ones stay, whatever lies above them."""
    store = filled(tmp_path)
    flip(store.folder / "run_epoch_0_iter_6" / "tensors.safetensors")
    (store.folder / "run_epoch_0_iter_5" / "state.json").unlink()
    (store.folder / "run_epoch_0_iter_1" / "manifest.json").write_text("{}")
    fresh = Store(tmp_path, "run", files=Disk())  # another process, which knows of nothing
    fresh.prune(Retention(last=1))
    assert iterations(fresh) == [3, 4, 5, 6]
    assert [item.path.name for item in fresh.damaged()] == ["run_epoch_0_iter_1"]
    assert caplog.text.count("not removed") == 2
    fresh.prune(Retention(last=1))
    assert caplog.text.count("not removed") == 2


def test_one_valid_checkpoint_is_never_all_that_is_left(tmp_path):
    """Where two were, two are; where one is, nothing goes."""
    store = filled(tmp_path, 4)
    for i in (0, 2, 3):
        flip(store.folder / f"run_epoch_0_iter_{i}" / "tensors.safetensors")
    assert Store(tmp_path, "run", files=Disk()).prune(Retention(last=1)) == []
    assert iterations(store) == [0, 1, 2, 3]


def test_a_checkpoint_that_shrinks_after_it_was_written_does_not_count(tmp_path):
    """What this process wrote is trusted only as long as its files have their lengths."""
    store = filled(tmp_path)
    path = store.folder / "run_epoch_0_iter_6" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    store.prune(Retention(last=1))
    assert iterations(store) == [4, 5, 6]


def test_each_byte_is_read_once_at_most(tmp_path):
    """Nothing of what this process wrote; of older ones the newest two, at the first pruning."""
    disk = Disk()
    store = filled(tmp_path, files=disk)

    def tensors_read(by: Store) -> set[str]:
        disk.reads.clear()
        by.prune(Retention(last=5))
        return {path.parent.name for path in disk.reads if path.name == "tensors.safetensors"}

    assert tensors_read(store) == set()
    fresh = Store(tmp_path, "run", files=disk)
    assert tensors_read(fresh) == {"run_epoch_0_iter_5", "run_epoch_0_iter_6"}
    assert tensors_read(fresh) == set()


def test_other_runs_and_unknown_things_are_left_alone(tmp_path, caplog):
    """Another name in the same root, a folder that is no checkpoint, a checkpoint with a file of somebody's own."""
    store, other = filled(tmp_path), filled(tmp_path, 4, run="run_epoch_0")
    (store.folder / "notes").mkdir()
    (store.folder / "run_epoch_0_iter_1" / "notes.txt").write_text("mine")
    store.prune(Retention(last=1))
    assert iterations(store) == [1, 5, 6]
    assert iterations(other) == [0, 1, 2, 3]
    assert (store.folder / "notes").is_dir()
    assert "notes.txt" in caplog.text


LIFE = st.lists(
    st.one_of(
        st.just("save"),
        st.tuples(
            st.just("damage"),
            st.integers(0, 9),
            st.sampled_from(["manifest.json", "state.json", "tensors.safetensors"]),
        ),
        st.tuples(st.just("kill"), st.integers(1, 60)),
        st.just("prune"),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=examples(25))
@given(LIFE, policies())
def test_through_damage_and_kills_the_two_newest_valid_ones_stay(life, policy):
    """Whatever happened to the folder, and wherever pruning was killed; every other one is whole or as it was."""
    with tempfile.TemporaryDirectory() as name:
        root, store, count = Path(name), filled(Path(name), 3), 3
        for event in life:
            if event == "save":
                save(store, count)
                count += 1
            elif event[0] == "damage":
                found = sorted(path for path in store.folder.iterdir() if not path.name.startswith("."))
                flip(found[event[1] % len(found)] / event[2])
                store = Store(root, "run", files=Disk())  # a process trusts what it wrote itself
            else:
                before = valid(store)
                store = pruned(root, store, policy, event)
                after = valid(store)
                assert set(before[:2]) <= set(after) <= set(before)


def pruned(root: Path, store: Store, policy: Retention, event: Any) -> Store:
    if event == "prune":
        store.prune(policy)
        return store
    disk = Disk()
    dying = Store(root, "run", files=disk)
    disk.calls.clear()
    disk._n = event[1]
    with contextlib.suppress(Killed):
        dying.prune(policy)
    with Store(root, "run", files=Disk()).lock():
        pass
    return Store(root, "run", files=Disk())


def valid(store: Store) -> list[str]:
    """The names of the valid checkpoints, newest first."""
    found = []
    for checkpoint in store.entries():
        with contextlib.suppress(hf.CheckpointError):
            verify(checkpoint.path)
            found.append(checkpoint.path.name)
    return found


# In a run.


OPTIMIZER = hf.optim.sgd(0.1)
STEP = hf.make_step(lambda p, b, batch, key: ((p["w"] * batch[0]).sum(), hf.Aux()), OPTIMIZER)
LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 1.0, 5: 2.0, 6: 2.5, 7: 9.0, 8: 8.0}


def run(root: Path | str, step=STEP, **changes) -> hf.Result:
    keywords = {"unit": "iteration", "total": 8, "checkpoint_every": 1, "validate_every": 1, "progress": False}
    cfg = RunConfig(**{**keywords, "root": root, **changes})
    data = hf.Loader(torch.utils.data.TensorDataset(torch.arange(6.0)[:, None]), 2)
    state = hf.init_state({"w": torch.ones(1)}, OPTIMIZER)
    return hf.run(step, state, data, cfg, validate=lambda s: {"loss": LOSSES[s.counters.iteration]})


BEST = Retention(last=2, best=2, monitor="loss", every=3)


def on_disk(root: Path) -> list[int]:
    return sorted(int(path.name.rpartition("_")[2]) for path in (root / "checkpoints").iterdir())


@pytest.mark.parametrize("stop", range(9))
def test_a_run_keeps_the_same_checkpoints_wherever_it_was_stopped(stop):
    """The decision needs nothing but what is on the disk."""
    with tempfile.TemporaryDirectory() as name:
        if stop:
            run(name, total=stop, retention=BEST)
        result = run(name, retention=BEST)
        assert on_disk(Path(name)) == [0, 3, 4, 5, 6, 7, 8]
        assert hf.tree.equal(result.state, run(Path(name) / "whole").state)


def test_best_is_what_retention_watches(tmp_path):
    """Going back to it moves the newer ones away; the run goes on from there and prunes as before."""
    run(tmp_path, retention=BEST)
    result = run(tmp_path, retention=BEST, resume="best", total=5)
    assert result.state.counters.iteration == 5
    assert on_disk(tmp_path) == [0, 3, 4, 5]
    assert len(list(tmp_path.glob("superseded/*/checkpoints/*"))) == 4


def test_a_damaged_best_gives_way_to_the_next_of_its_cycle(tmp_path, caplog):
    """Its neighbour, which repeats the value, is nearer to it than any other cycle."""
    keywords = {"retention": Retention(last=9, monitor="loss"), "total": 5}
    run(tmp_path, **keywords, validate_every=2)
    flip(tmp_path / "checkpoints" / "run_epoch_1_iter_4" / "tensors.safetensors")
    with caplog.at_level(logging.INFO):
        run(tmp_path, **keywords, validate_every=2, resume="best")
    assert "passing over" in caplog.text
    assert "run_epoch_1_iter_5" in caplog.text.rpartition("going on from ")[2]


def test_rolling_back_finds_its_checkpoint_in_a_pruned_folder(tmp_path):
    """The newest is always there, and finite."""

    def bad_once(params, buffers, batch, key):
        bad = (batch[0] == 4).any()
        return (params["w"] * batch[0]).sum() + torch.where(bad, torch.nan, 0.0), hf.Aux()

    step = hf.make_step(bad_once, OPTIMIZER)
    keywords = {"non_finite": "rollback", "check_finite_every": 1, "step": step, "total": 5}
    pruned = run(tmp_path / "a", retention=Retention(last=1), **keywords)
    whole = run(tmp_path / "b", **keywords)
    assert hf.tree.equal(pruned.state, whole.state)
    assert on_disk(tmp_path / "a") == [4, 5]


def test_a_metric_that_validation_does_not_return_is_an_error(tmp_path):
    """Otherwise the best would never be kept, in silence."""
    with pytest.raises(hf.RunFailed, match="retention watches 'los', but validate returned loss"):
        run(tmp_path, retention=Retention(best=1, monitor="los"))


def test_a_disk_that_cannot_delete_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    """It is reported, and tried again at the next save."""

    def refuse(self, source, target):
        raise PermissionError(errno.EACCES, "no", str(source))

    rename = FileSystem.rename
    monkeypatch.setattr(
        FileSystem, "rename", lambda self, a, b: (refuse if b.name.startswith(REMOVED) else rename)(self, a, b)
    )
    run(tmp_path, retention=Retention(last=2))
    assert on_disk(tmp_path) == list(range(9))
    assert "old checkpoints stay for now" in caplog.text
    monkeypatch.setattr(FileSystem, "rename", rename)
    run(tmp_path, retention=Retention(last=2), total=9, validate_every=20)
    assert on_disk(tmp_path) == [8, 9]
