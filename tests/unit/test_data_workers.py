"""Worker processes: they change no byte, are sent to other positions alive, and fail with a word."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random as python_random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from helios_fn import random, tree
from helios_fn.data import Loader, pool
from helios_fn.types import Cursor, Share

KEY = random.key(6691)
START, ALONE = Cursor(), Share()


class Noisy:
    """Draws from every generator there is; sample ``trap`` does something else."""

    def __init__(self, n=23, trap=None, act=None):
        self.n, self.trap, self.act = n, trap, act

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.trap:
            return self.act()
        return index, torch.rand(2), python_random.random(), np.random.rand(2)


def jitter(sample, rng):
    return *sample, rng.standard_normal(2)


def leave():
    sys.exit(3)


def leave_at_once():
    os._exit(3)


def fail():
    raise ValueError("broken\nsample")


def unsendable():
    return lambda: None


def as_a_list(samples):
    return list(samples)


def read(loader, iterations, cursor=START, share=ALONE):
    feed = loader.open(cursor, key=KEY, share=share)
    deliveries = [next(feed) for _ in range(iterations)]
    feed.close()
    return deliveries


def workers_now():
    return {child.pid for child in multiprocessing.active_children()}


@pytest.fixture
def impatient(monkeypatch):
    """Lost workers are looked for ten times a second instead of every 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


@pytest.fixture(autouse=True)
def _no_worker_survives():
    before = workers_now()
    yield
    assert workers_now() <= before


def test_workers_prefetching_and_resume_points_change_no_byte():
    """Law 5: equal bytes for 0, 1 and 2 workers, from every cursor, for every part of a world of two."""
    plain = Loader(Noisy(), 4, transform=jitter)
    others = [plain.replace(workers=1, prefetch=1), plain.replace(workers=2, prefetch=3)]
    for share in (Share("iteration", 2, 0, 2), Share("epoch", 3, 1, 2), Share()):
        reference = read(plain, 9, share=share)
        for loader in others:
            assert tree.equal(read(loader, 9, share=share), reference)
            for at in (1, 4, 7):
                assert tree.equal(read(loader, 2, reference[at - 1].cursor, share), reference[at : at + 2])
    assert all(tree.equal(list(loader.epoch(KEY, 1)), list(plain.epoch(KEY, 1))) for loader in others)
    for loader in others:
        loader.close()


def test_live_workers_are_sought_without_a_restart():
    """Opening again, at another cursor or in the middle of reading, keeps the processes; closing stops them."""
    before = workers_now()
    loader = Loader(Noisy(), 4, workers=2)
    read(loader, 3)
    started = workers_now() - before
    assert len(started) == 2
    read(loader, 2, Cursor(epoch=7, batch=3))
    feed = loader.open(START, key=KEY, share=ALONE)
    next(feed)
    list(loader.epoch(KEY))
    with pytest.raises(RuntimeError, match="opened again"):
        next(feed)
    assert workers_now() - before == started
    loader.close()
    assert workers_now() == before
    assert len(read(loader, 1)) == 1
    loader.close()


def test_a_dropped_loader_stops_its_workers():
    """Nothing is left running when nobody holds the loader or its feed."""
    before = workers_now()
    feed = Loader(Noisy(), 4, workers=1).open(Cursor(), key=KEY, share=Share())
    next(feed)
    assert workers_now() != before
    del feed
    assert workers_now() == before


def test_the_global_random_state_of_the_main_process_is_untouched():
    """Starting, reading, seeking and closing draw nothing."""
    before = random.ambient_fingerprint()
    loader = Loader(Noisy(), 4, workers=1)
    read(loader, 2)
    read(loader, 1)
    loader.close()
    assert random.drawn(before, random.ambient_fingerprint()) == []


def test_a_raising_sample_is_named_and_its_worker_lives_on():
    """The message is one line with the worker, the sample and its place; a note has the traceback from there."""
    loader = Loader(Noisy(trap=5, act=fail), 2, workers=1, shuffle=False)
    with pytest.raises(RuntimeError) as caught:
        read(loader, 3)
    words = "in worker 0: sample 5 (batch 2 of epoch 0) could not be read (ValueError: broken sample)"
    assert str(caught.value) == words
    (note,) = caught.value.__notes__
    assert note.startswith("In the worker:\nTraceback")
    assert 'raise ValueError("broken\\nsample")' in note
    before = workers_now()
    assert len(read(loader, 2)) == 2
    assert workers_now() == before
    loader.close()


@pytest.mark.parametrize("act", [leave, unsendable])
def test_what_a_sample_does_to_its_worker_is_an_error_of_that_sample(act):
    """sys.exit is caught; what cannot be sent is found out before the queue loses it in silence."""
    loader = Loader(Noisy(trap=1, act=act), 2, workers=1, shuffle=False, collate=as_a_list)
    with pytest.raises(RuntimeError, match="in worker 0"):
        read(loader, 1)
    loader.close()


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_leaves_is_an_error_and_the_loader_can_be_opened_again():
    """A clear error, then new workers."""
    loader = Loader(Noisy(trap=9, act=leave_at_once), 2, workers=2, prefetch=1, shuffle=False)
    with pytest.raises(RuntimeError, match="a worker process of the loader is gone") as caught:
        read(loader, 5)
    assert "open the loader again" in str(caught.value)
    assert len(read(loader, 1)) == 1
    loader.close()


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_a_connection_that_breaks_while_reading_is_a_lost_worker(error, monkeypatch):
    """A worker that dies while it hands over a batch; nobody is told that the workers could not be started."""
    loader = Loader(Noisy(), 2, workers=1)
    feed = loader.open(START, key=KEY, share=ALONE)
    next(feed)

    def broken(iterator, timeout=None):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
        with pytest.raises(
            RuntimeError, match=rf"a worker process of the loader is gone \({type(error).__name__}"
        ) as one:
            next(feed)
    assert one.value.__cause__ is error
    assert len(read(loader, 1)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
        with pytest.raises(RuntimeError, match="a worker process of the loader is gone"):
            loader.open(START, key=KEY, share=ALONE)
    loader.close()


def test_workers_that_cannot_be_started_are_told_from_lost_ones(monkeypatch):
    """Only what cannot be sent to them has the remedy of that."""

    def refuse(*arguments):
        raise OSError(12, "Cannot allocate memory")

    loader = Loader(Noisy(), 2, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        with pytest.raises(RuntimeError, match=r"the workers could not be started .*Cannot allocate") as caught:
            read(loader, 1)
    assert "top of a module" not in str(caught.value)
    assert len(read(loader, 1)) == 1
    loader.close()


@pytest.mark.usefixtures("impatient")
def test_a_worker_killed_from_outside_is_an_error():
    """As by the out-of-memory killer, between two batches."""
    before = workers_now()
    loader = Loader(Noisy(), 2, workers=1, prefetch=1)
    feed = loader.open(START, key=KEY, share=ALONE)
    next(feed)
    for child in multiprocessing.active_children():
        if child.pid not in before:
            child.kill()
            child.join()  # nothing is raised here, in the middle of something else
    with pytest.raises(RuntimeError, match="a worker process of the loader is gone"):
        list(itertools.islice(feed, 10))
    with pytest.raises(RuntimeError, match="failed before"):
        next(feed)
    assert len(read(loader, 1)) == 1
    loader.close()


def test_signals_to_the_process_group_leave_workers_reading():
    """Ctrl-C and SIGTERM are the main process's to answer; it may need more batches to stop in order."""
    before = workers_now()
    loader = Loader(Noisy(), 2, workers=2, prefetch=1)
    reference = read(loader.replace(workers=0), 20)
    feed = loader.open(START, key=KEY, share=ALONE)
    found = [next(feed), next(feed)]  # one of each worker, which therefore is past its start
    for pid in workers_now() - before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert tree.equal(found + [next(feed) for _ in range(18)], reference)
    loader.close()


def test_a_faulty_order_is_not_taken_for_a_lost_worker():
    """What goes wrong in planning is reported as that."""
    loader = Loader(Noisy(), 4, workers=1, order=lambda key, epoch, n: [0] * (n - epoch))
    with pytest.raises(RuntimeError, match=r"could not be planned \(ValueError: .* gave 22 indices in epoch 1"):
        read(loader, 7)
    loader.close()


def test_what_cannot_be_sent_to_spawned_workers_is_a_clear_error():
    """With the two remedies."""
    loader = Loader(Noisy(), 4, workers=1, transform=lambda sample, rng: sample, multiprocessing_context="spawn")
    with pytest.raises(TypeError, match="must be defined at the top of a module"):
        read(loader, 1)


def test_worker_init_is_called_in_each_worker_before_anything_is_read():
    """With the worker's number."""
    loader = Loader(Environment(), 1, workers=2, worker_init=remember, shuffle=False)
    assert [int(batch) for batch in loader.epoch(KEY)] == [0, 1, 0, 1]
    loader.close()


def remember(worker):
    os.environ["THE_WORKER"] = str(worker)


class Environment:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return int(os.environ["THE_WORKER"])


PROGRAM = """
from helios_fn import tree
from tests.unit.test_data_workers import ALONE, KEY, START, Loader, Noisy, jitter
if __name__ == "__main__":
    loader = Loader(Noisy(9), 4, transform=jitter)
    others = [loader.replace(workers=1, multiprocessing_context=method) for method in ("fork", "spawn")]
    feeds = [each.open(START, key=KEY, share=ALONE) for each in (loader, *others)]
    here, forked, spawned = ([next(feed) for _ in range(4)] for feed in feeds)
    print(tree.equal(forked, here), tree.equal(spawned, here))
"""


def test_fresh_interpreters_change_no_byte_and_end_quietly(tmp_path):
    """Spawned workers read the same; with workers left open: no hang, no message, exit status 0."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_workers_of_a_killed_process_say_nothing(capsys):
    """What multiprocessing's thread meets when the main process dies in the middle of a batch is nobody's news."""
    for error in (ConnectionResetError(104, "reset"), EOFError()):
        pool._quiet_at_a_lost_connection(type(error), error, None)
    assert capsys.readouterr().err == ""
    pool._quiet_at_a_lost_connection(KeyError, KeyError("told"), None)
    assert "KeyError: 'told'" in capsys.readouterr().err
