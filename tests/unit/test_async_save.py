"""Asynchronous saving: what is on disk is what was handed over, it counts when it is durable, no failure is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Lock, Prepared, Save, Store, Writer
from helios_fn.checkpoint.writer import THREAD_NAME
from helios_fn.driver.folder import RunFolder
from helios_fn.errors import StateOverwritten
from helios_fn.state import OUTPUT_ONLY

from . import test_donation as donation
from .test_driver import STEP, config, fresh, loader, run

LONG = 20.0  # seconds: an event that does not come by then will never come


@pytest.fixture
def tmp_path():
    """In memory, where fsync costs nothing: what is claimed here holds for any disk, however slow."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def nobody_writes_on():
    """When a run has returned, its writer has ended too."""
    yield
    for thread in writers():
        thread.join(0.5)  # it has ended its save, and may be about to end itself
    assert not writers()


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture
def lazy_disk(monkeypatch):
    """A disk that reads no tensor and writes no byte before somebody waits for it: the slowest that there can be."""
    gates: dict[Save, threading.Event] = {}
    wait, run_save = Save.wait, Save.run

    def gate(save: Save) -> threading.Event:
        return gates.setdefault(save, threading.Event())

    def lazy_run(self: Save, write, after_save) -> None:
        assert gate(self).wait(LONG)
        run_save(self, write, after_save)

    def waking_wait(self: Save) -> None:
        gate(self).set()
        wait(self)

    monkeypatch.setattr(Save, "run", lazy_run)
    monkeypatch.setattr(Save, "wait", waking_wait)


@pytest.fixture
def submitted(monkeypatch) -> dict[str, str]:
    """The digest of each state at the moment when it was handed over, by the name of its checkpoint."""
    found: dict[str, str] = {}
    save = RunFolder.save

    def noting(self, state, marks, **keywords):
        digest = tree.digest(state)
        submission = save(self, state, marks, **keywords)
        found[submission.path.name] = digest
        return submission

    monkeypatch.setattr(RunFolder, "save", noting)
    return found


def on_disk(root: Path, like: hf.TrainState) -> dict[str, str]:
    """The digests of the states in the checkpoints of a run."""
    store = Store(root, "run")
    return {
        entry.path.name: tree.digest(store.load(store.at(entry.path), like, free=OUTPUT_ONLY))
        for entry in store.entries()
    }


class TestWhatIsWritten:
    """A checkpoint holds the state that was handed over, bit for bit, whatever training does meanwhile."""

    @pytest.mark.parametrize("which", sorted(donation.OPTIMIZERS))
    @pytest.mark.parametrize(
        ("donate", "every", "validate_every"), [(True, 1, 3), (True, 4, None), (True, 4, 3), ("auto", 4, None)]
    )
    def test_donation_never_reaches_a_state_in_flight(
        self, tmp_path, lazy_disk, submitted, which, donate, every, validate_every
    ):
        """With frozen, collected and averaged leaves that states share; validation keeps other states in between."""
        step, state, data = donation.job(optimizer=donation.OPTIMIZERS[which](), average=hf.ema(0.9))
        cfg = donation.config(total=11, donate=donate, purity_checks=0, root=tmp_path, checkpoint_every=every)
        cfg = dataclasses.replace(cfg, validate_every=validate_every)
        validate = None if validate_every is None else lambda state: {"count": 1.0}
        last = hf.run(step, state, data, cfg, validate=validate).state
        assert len(submitted) == len({*range(0, 11, every), 11})
        assert on_disk(tmp_path, last) == submitted

    def test_nor_what_a_step_had_put_aside(self, tmp_path, lazy_disk, submitted):
        """A step that donates may pass its leaves around: what was a spare in the state in flight becomes a parameter
        iterations later, and is written to then."""

        def first():
            return fresh(extra={f"spare{i}": torch.full((2, 2), float(i)) for i in range(3)})

        cfg = config(total=12, donate=True, purity_checks=0, root=tmp_path, checkpoint_every=6)
        last = hf.run(Rotating(), first, loader(), cfg).state
        assert on_disk(tmp_path, last) == submitted
        assert tree.equal(last, hf.run(Rotating(), first, loader(), config(total=12, donate=False)).state)

    @pytest.mark.parametrize("donate", [True, False])
    def test_both_settings_write_the_same_bytes(self, tmp_path, donate):
        """Whether a thread writes is not to be seen in any file, but for the time in the name of the log folder."""
        step, state, data = donation.job()
        contents = []
        for async_save in (True, False):
            cfg = donation.config(donate=donate, root=tmp_path / "root", checkpoint_every=2, async_save=async_save)
            hf.run(step, state, data, cfg)
            contents.append(files_of(tmp_path / "root"))
            (tmp_path / "root").rename(tmp_path / f"root-{async_save}")
        assert contents[0] == contents[1]
        assert len(contents[0]) == 6 * 3

    def test_states_made_in_inference_mode_are_written(self, tmp_path):
        """They have no version counters, and the writer's thread is in no such mode."""
        with torch.inference_mode():
            state = fresh()
            store = Store(tmp_path, "run")
            pending = store.prepare(state, epoch=0, iteration=0, micro_step=0, record={}, free=OUTPUT_ONLY)
        writer = Writer()
        writer.submit(Prepared(pending.folder, lambda: store.commit(pending)))
        writer.drain()
        writer.close(lambda: None)
        assert on_disk(tmp_path, fresh()) == {pending.folder.name: tree.digest(state)}


def files_of(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted((root / "checkpoints").rglob("*.*")):
        content: object = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(path.read_bytes())
            del manifest["digest"], manifest["record"]["log_dir"]
            content = json.dumps(manifest)
        found[str(path.relative_to(root))] = content
    return found


class Rotating:
    """Its parameters are written in place, and then change places with spares in ``extra``."""

    def __call__(self, state, batch):
        return self.rotated(state, state.params["w"] * 0.5 + batch[0].sum())

    def donating(self, state, batch):
        return self.rotated(state, state.params["w"].mul_(0.5).add_(batch[0].sum()))

    def rotated(self, state, w):
        spares = [*state.extra.values(), w]
        return state.replace(params={"w": spares[0]}, extra={f"spare{i}": spare for i, spare in enumerate(spares[1:])})


class TestWritesWhileSaving:
    """Somebody who writes to a state that is being saved is told, and the torn checkpoint never exists."""

    def test_an_observer_that_writes_to_a_state_in_flight(self, tmp_path, lazy_disk):
        """The leaf is named; neither the torn state nor one computed from it is on disk."""

        class Writing(hf.Observer):
            def on_iteration(self, state):
                if state.counters.iteration == 2:
                    self.state = state
                if state.counters.iteration == 3:
                    self.state.params["w"].add_(1.0)

        with pytest.raises(hf.RunFailed, match=r"iter_2: params\['w'\] was written to while it was being") as caught:
            run(root=tmp_path, checkpoint_every=2, observers=[Writing()], donate=False)
        assert isinstance(caught.value.__cause__, hf.CheckpointError)
        assert caught.value.checkpoint is None
        assert names(tmp_path) == ["run_epoch_0_iter_0"]
        assert tree.equal(run(root=tmp_path).state, run().state)

    def test_nothing_that_came_after_is_saved_when_the_run_fails(self, tmp_path, lazy_disk):
        """The failure that is reported may be another one."""

        def step(state, batch):
            if state.counters.iteration == 2:
                self.state = state
            if state.counters.iteration == 3:
                self.state.params["w"].add_(1.0)
                raise KeyError("boom")
            return STEP(state, batch)

        with pytest.raises(hf.RunFailed, match="boom") as caught:
            run(step, root=tmp_path, checkpoint_every=2, purity_checks=0)
        assert caught.value.checkpoint is None
        assert names(tmp_path) == ["run_epoch_0_iter_0"]

    def test_leaving_a_loop_whose_state_was_written_to(self, tmp_path, lazy_disk):
        """Nor is the last state saved then: it may hold what was written."""
        states = hf.iterate(STEP, fresh(), loader(), config(root=tmp_path, checkpoint_every=2))
        kept = [next(states) for _ in range(3)]
        kept[1].params["w"].zero_()
        with pytest.raises(StateOverwritten, match=r"params\['w'\]"):
            states.close()
        assert names(tmp_path) == ["run_epoch_0_iter_0"]

    def test_no_file_proves_a_torn_checkpoint(self, tmp_path):
        """Killed right after the check failed, there is no manifest that the next start could believe."""
        state = fresh()
        store = Store(tmp_path, "run")
        pending = store.prepare(state, epoch=0, iteration=0, micro_step=0, record={}, free=OUTPUT_ONLY)
        state.params["w"].add_(1.0)
        created = []

        class Noting(FileSystem):
            def create(self, path):
                created.append(path.name)
                return super().create(path)

        store._files = Noting()
        with pytest.raises(StateOverwritten):
            store.commit(pending)
        assert "tensors.safetensors" in created
        assert "manifest.json" not in created
        assert not any(store.folder.iterdir())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


class Failing:
    """Makes the file system refuse to begin the checkpoints whose names end as told."""

    def __init__(self, monkeypatch, *endings: str, times: int = 1) -> None:
        self.left = dict.fromkeys(endings, times)
        mkdir = FileSystem.mkdir

        def refusing(files, path):
            for ending in self.left:
                if path.name.endswith(ending) and self.left[ending]:
                    self.left[ending] -= 1
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
            mkdir(files, path)

        monkeypatch.setattr(FileSystem, "mkdir", refusing)


class TestFailures:
    """A failure in the writer's thread is a failure of the run."""

    def test_it_ends_the_run_with_the_path_and_the_last_state_is_saved(self, tmp_path, monkeypatch):
        """As `CheckpointError`; the failed save counts for nothing, the failure checkpoint for everything."""
        Failing(monkeypatch, "iter_2")
        with pytest.raises(hf.RunFailed, match=r"a save that had ended by iteration \d .*ENOSPC.*iter_2") as caught:
            run(root=tmp_path, checkpoint_every=2, step=waiting_step)
        assert isinstance(caught.value.__cause__, hf.CheckpointError)
        assert caught.value.checkpoint.is_dir()
        assert caught.value.checkpoint.name in names(tmp_path)
        assert caught.value.checkpoint.name.endswith(f"iter_{caught.value.iteration}")
        assert tree.equal(run(root=tmp_path).state, run().state)

    def test_it_is_heard_of_at_the_end_at_the_latest(self, tmp_path, monkeypatch, lazy_disk):
        """Nobody waited for the save before; the last state is written all the same."""
        Failing(monkeypatch, "iter_4")
        told = Told()
        with pytest.raises(hf.RunFailed, match=r"ENOSPC.*iter_4.*iteration 6 is saved in") as caught:
            run(root=tmp_path, checkpoint_every=4, observers=[told])
        assert caught.value.checkpoint.name.endswith("iter_6")
        assert told.names == ["run_epoch_0_iter_0", "run_epoch_1_iter_6"]
        assert run(root=tmp_path).reason is hf.Reason.TOTAL

    def test_it_is_heard_of_when_a_loop_is_left(self, tmp_path, monkeypatch, lazy_disk):
        """``close`` raises it, with the last state on disk."""
        Failing(monkeypatch, "iter_2")
        states = hf.iterate(STEP, fresh(), loader(), config(root=tmp_path, checkpoint_every=2))
        for _ in range(3):
            next(states)
        with pytest.raises(hf.CheckpointError, match=r"ENOSPC.*iter_2"):
            states.close()
        assert names(tmp_path) == ["run_epoch_0_iter_0", "run_epoch_0_iter_3"]

    def test_it_is_noted_on_a_failure_that_was_first(self, tmp_path, monkeypatch, lazy_disk, caplog):
        """Neither hides the other."""
        Failing(monkeypatch, "iter_2")

        def step(state, batch):
            if state.counters.iteration == 3:
                raise KeyError("boom")
            return STEP(state, batch)

        with pytest.raises(hf.RunFailed, match="boom") as caught:
            run(step, root=tmp_path, checkpoint_every=2)
        assert any("ENOSPC" in note and "iter_2" in note for note in caught.value.__cause__.__notes__)
        assert "ENOSPC" in caplog.text
        assert caught.value.checkpoint.name.endswith("iter_3")

    def test_a_failure_saves_after_the_save_on_its_way(self, tmp_path, lazy_disk):
        """Both are on disk, in order, when the error leaves the run."""

        def step(state, batch):
            if state.counters.iteration == 3:
                raise KeyError("boom")
            return STEP(state, batch)

        told = Told()
        with pytest.raises(hf.RunFailed, match="boom"):
            run(step, root=tmp_path, checkpoint_every=2, observers=[told])
        assert told.names == ["run_epoch_0_iter_0", "run_epoch_0_iter_2", "run_epoch_0_iter_3"] == names(tmp_path)

    def test_a_rollback_finds_the_save_on_its_way(self, tmp_path, lazy_disk):
        """The newest finite checkpoint is the one that was still being written."""
        steps = []

        def step(state, batch):
            steps.append(state.counters.iteration)
            if state.counters.iteration == 4:
                batch = (batch[0] * float("nan"), batch[1])
            return STEP(state, batch)

        run(step, root=tmp_path, checkpoint_every=4, check_finite_every=1, non_finite="rollback")
        assert steps == [0, 1, 2, 3, 4, 4, 5]

    def test_the_hook_after_a_save_may_fail(self, tmp_path):
        """The checkpoint is durable and counts; the error is raised where the next one is handed over."""

        def fail():
            raise hf.CheckpointError("cannot prune")

        folder = RunFolder(config(root=tmp_path), {}, after_save=fail)
        with folder:
            save = folder.save(fresh(), {})
            save.wait()
            assert save.durable
            assert isinstance(save.error, hf.CheckpointError)
            assert save.path.is_dir()


def waiting_step(state, batch):
    time.sleep(0.002)
    return STEP(state, batch)


class Told(hf.Observer):
    """Notes the checkpoints that it is told of, and in which thread."""

    def __init__(self):
        self.names, self.iterations, self.threads, self.events = [], [], set(), []

    def on_iteration(self, state):
        self.events.append(state.counters.iteration)

    def on_checkpoint(self, path, state):
        self.names.append(path.name)
        assert Store(path.parents[1], "run").at(path).iteration == state.counters.iteration, "not durable"
        self.events.append(f"saved {state.counters.iteration}")
        self.threads.add(threading.current_thread())

    def on_end(self, state, reason):
        self.events.append("end")


class TestObservers:
    """Observers hear of a checkpoint when it is durable, in order, in the thread that trains."""

    @pytest.mark.parametrize("async_save", [True, False])
    def test_in_order_and_before_the_end(self, tmp_path, async_save):
        told = Told()
        run(total=7, root=tmp_path, checkpoint_every=2, observers=[told], async_save=async_save)
        assert told.names == [f"run_epoch_{i // 4}_iter_{i}" for i in (0, 2, 4, 6, 7)]
        assert told.threads == {threading.current_thread()}
        assert told.events[-1] == "end"
        assert told.events[0] == "saved 0"
        for i in (2, 4, 6, 7):
            assert told.events.index(i) < told.events.index(f"saved {i}")

    def test_at_the_iteration_after_it_has_become_durable(self, tmp_path, monkeypatch):
        """Not only at the end, nor only when the next save has to wait."""
        told = Told()

        def step(state, batch):
            if state.counters.iteration == 4:
                assert durable.wait(LONG)
            return STEP(state, batch)

        durable = threading.Event()
        run_save = Save.run

        def telling(self, *work):
            run_save(self, *work)
            if self.path.name.endswith("iter_3"):
                durable.set()

        monkeypatch.setattr(Save, "run", telling)

        run(step, root=tmp_path, checkpoint_every=3, observers=[told])
        assert told.events.index("saved 3") < told.events.index(6)

    def test_a_slow_disk_slows_training_down(self, tmp_path, lazy_disk, monkeypatch):
        """At most one save is on its way: the second waits for the first."""
        running, most = [], []
        run_save = Save.run

        def counting(self, *work):
            running.append(self)
            most.append(len(running))
            run_save(self, *work)
            running.remove(self)

        monkeypatch.setattr(Save, "run", counting)
        run(root=tmp_path, checkpoint_every=1)
        assert most == [1] * 7


class TestWriter:
    """The writer alone."""

    def test_a_save_begins_when_the_one_before_has_ended(self):
        """With what was to be done after it: states never queue up behind a slow disk, each one in memory."""
        running, most, saves = [], [], []

        def work():
            running.append(1)
            time.sleep(0.005)
            most.append(len(running))

        writer = Writer(after_save=running.clear)
        for i in range(4):
            saves.append(writer.submit(Prepared(Path(str(i)), work)))
            assert all(save.ended for save in saves[:-1])
        writer.drain()
        writer.close(lambda: None)
        assert not writer.writing
        assert most == [1] * 4
        assert all(save.durable and save.error is None for save in saves)

    @pytest.mark.parametrize("background", [True, False])
    def test_only_what_was_written_is_durable(self, background):
        """An error of the hook that follows is no error of the checkpoint."""

        def fail():
            raise KeyError("boom")

        failing, pruning = Writer(background=background), Writer(background=background, after_save=fail)
        failed = failing.submit(Prepared(Path("a"), fail))
        pruned = pruning.submit(Prepared(Path("b"), lambda: None))
        for writer, save, durable in ((failing, failed, False), (pruning, pruned, True)):
            writer.drain()
            writer.close(lambda: None)
            assert save.durable is durable
            assert isinstance(save.error, KeyError)

    def test_a_state_is_let_go_when_it_is_on_disk(self):
        """Neither the writer nor the save that it returned keeps it in memory."""
        writer, saves, tensors = Writer(), [], []
        for i in range(2):
            tensor = torch.zeros(3)
            tensors.append(weakref.ref(tensor))
            saves.append(writer.submit(Prepared(Path(str(i)), tensor.sum)))
            del tensor
        assert tensors[0]() is None
        writer.drain()
        writer.close(lambda: None)

    def test_what_is_to_be_called_at_the_close_is_called_once(self):
        """At once where nothing is being written, else as the last act of the save."""
        called = []
        Writer().close(lambda: called.append("never wrote"))
        gate, writer = threading.Event(), Writer()
        save = writer.submit(Prepared(Path("a"), lambda: gate.wait(LONG)))
        writer.close(lambda: called.append("wrote"))
        assert called == ["never wrote"]
        assert writer.writing
        gate.set()
        writers()[0].join(LONG)
        assert called == ["never wrote", "wrote"]
        save.when_ended(lambda: called.append("later"))
        assert called[2:] == ["later"]

    def test_an_interpreter_that_exits_ends_what_was_begun(self, tmp_path):
        """And waits for nothing else: a loop that was never closed keeps nobody waiting."""
        program = (  # with the writer's module alone, which needs no torch: that would take seconds to import
            "import sys, time, pathlib, importlib.util as util\n"
            "spec = util.spec_from_file_location('writer', sys.argv[2])\n"
            "sys.modules['writer'] = writer = util.module_from_spec(spec)\n"
            "spec.loader.exec_module(writer)\n"
            "target = pathlib.Path(sys.argv[1])\n"
            "idle, busy = writer.Writer(), writer.Writer()\n"
            "idle.submit(writer.Prepared(target, lambda: None)).wait()\n"
            "busy.submit(writer.Prepared(target, lambda: (time.sleep(0.2), target.write_text('whole'))))\n"
        )
        module = sys.modules[Writer.__module__].__file__
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "a"), module], check=True, timeout=60)
        assert (tmp_path / "a").read_text() == "whole"


class TestEnds:
    """The writer has left the folder before anybody else may enter it."""

    def test_the_lock_is_held_until_the_save_has_ended(self, tmp_path, monkeypatch):
        """Also when the run is aborted: then the run returns at once, and the writer gives the lock back."""
        gate, begun = threading.Event(), threading.Event()
        mkdir = FileSystem.mkdir

        def slow(files, path):
            if path.name.endswith("iter_2"):
                begun.set()
                assert gate.wait(LONG)
            mkdir(files, path)

        monkeypatch.setattr(FileSystem, "mkdir", slow)

        class Impatient(hf.Observer):
            def on_iteration(self, state):
                if state.counters.iteration == 3:
                    assert begun.wait(LONG)
                    signal.raise_signal(signal.SIGINT)
                    signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run(root=tmp_path, checkpoint_every=2, observers=[Impatient()])
        with pytest.raises(hf.RootLocked):
            Lock(tmp_path / "lock")
        gate.set()
        writers()[0].join(LONG)
        assert run(root=tmp_path, resume="last").reason is hf.Reason.TOTAL
        assert "run_epoch_0_iter_2" in names(tmp_path)

    def test_a_second_signal_ends_the_wait_for_the_last_save(self, tmp_path, monkeypatch):
        """Nobody has to wait for a disk that does not answer."""
        gate = threading.Event()
        main = threading.main_thread().ident
        mkdir = FileSystem.mkdir

        def stuck(files, path):
            if path.name.endswith("iter_6"):
                for _ in range(2):
                    time.sleep(0.05)
                    signal.pthread_kill(main, signal.SIGINT)
                assert gate.wait(LONG)
            mkdir(files, path)

        monkeypatch.setattr(FileSystem, "mkdir", stuck)
        try:
            with pytest.raises(KeyboardInterrupt):
                run(root=tmp_path)
        finally:
            gate.set()

    @pytest.mark.parametrize("error", [SystemExit, hf.testing.Crash])
    def test_whatever_else_ends_a_run_waits(self, tmp_path, lazy_disk, error):
        """What was handed over is on disk when the exception leaves the run, and the lock is free."""
        with pytest.raises(error):
            run(root=tmp_path, checkpoint_every=2, observers=[Ending(error)])
        assert names(tmp_path) == ["run_epoch_0_iter_0", "run_epoch_0_iter_2"]
        Lock(tmp_path / "lock").release()

    def test_without_threads_the_caller_writes(self, tmp_path, monkeypatch):
        """At the limit of threads, or while the interpreter exits, nothing is lost."""

        def none_left(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none_left)  # what the executor calls
        assert run(root=tmp_path).reason is hf.Reason.TOTAL
        assert names(tmp_path) == ["run_epoch_0_iter_0", "run_epoch_1_iter_6"]

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
    def test_the_writer_is_less_urgent_than_training(self, tmp_path):
        found = []
        folder = RunFolder(config(root=tmp_path), {}, after_save=lambda: found.append(priority()))
        with folder:
            folder.save(fresh(), {}).wait()
        assert found == [min(priority() + 10, 19)]


def priority() -> int:
    """The niceness of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class Ending(hf.Observer):
    """Raises something that is no ``Exception``, in iteration 3."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_iteration(self, state):
        if state.counters.iteration == 3:
            raise self.error
