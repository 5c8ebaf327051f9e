"""Real processes and real signals: what a scheduler sends ends a run in order, and it learns what to do next."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

import helios_fn as hf
from helios_fn.checkpoint import FileSystem

from ..forked import CONTEXT
from ..jobs import Case, build

TOTAL = 24
CASE = Case(total=TOTAL, samples=12, augment="torch", dropout=True, checkpoint_every=hf.Every(4, "iteration"))


class Tell(hf.Observer):
    """Tells the parent about each iteration, and takes its time for the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_iteration(self, state: hf.TrainState) -> None:
        self.pipe.send(state.counters.iteration)
        time.sleep(0.005)


def train(root: str, disk: float, max_time: float | None, pipe: Connection) -> None:
    """What a user's program does: run, and exit with the status of the result."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    mkdir = FileSystem.mkdir

    def slow(files: FileSystem, path: Path) -> None:
        if not path.name.endswith("iter_0"):
            time.sleep(disk)
        mkdir(files, path)

    FileSystem.mkdir = slow  # type: ignore[method-assign]
    job = build(CASE)
    changes = {"root": root, "progress": False, "checkpoint_every": CASE.checkpoint_every, "max_time": max_time}
    cfg = hf.RunConfig(unit="iteration", total=TOTAL, log_every=None, **changes)
    result = hf.run(job.step, job.state, job.loader(), cfg, observers=[Tell(pipe)], **job.keywords)
    pipe.send((result.reason.name, hf.tree.digest(result.state)))
    sys.exit(result.exit_status)


def launch(
    root: Path, *signals: signal.Signals, at: int = 6, disk: float = 0.0, max_time: float | None = None
) -> tuple[int | None, object]:
    """The exit status of a process that gets ``signals`` after an iteration, and what it told last."""
    parent, other = CONTEXT.Pipe()
    process = CONTEXT.Process(target=train, args=(str(root), disk, max_time, other))
    process.start()
    other.close()
    told = None
    try:
        while True:
            told = parent.recv()
            if told == at:
                for number in signals:
                    os.kill(process.pid, number)
                    time.sleep(0.05)
    except EOFError:
        pass
    process.join(60)
    return process.exitcode, told


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> object:
    status, told = launch(tmp_path_factory.mktemp("alone"))
    assert status == 0
    return told


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGUSR1, signal.SIGTERM]],
    ids=lambda signals: "-".join(each.name for each in signals),
)
def test_a_signal_asks_to_be_started_again(tmp_path, undisturbed, signals):
    """Status 75 with the last state on disk, though the disk is slow; the next process ends in the same bits.

    SIGUSR1 is a notice: the SIGTERM that follows it while the last state is being saved is a first one.
    """
    status, told = launch(tmp_path, *signals, disk=0.1)
    assert status == 75
    assert told[0] == "SIGNAL"
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert launch(tmp_path) == (0, undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)])
def test_a_second_signal_aborts_while_the_disk_is_stuck(tmp_path, undisturbed, number, status):
    """Without waiting for it, and without harm: the next process goes on to the same bits."""
    assert launch(tmp_path, number, number, disk=0.5)[0] == status
    assert launch(tmp_path) == (0, undisturbed)


def test_a_time_limit_asks_to_be_started_again_until_the_run_is_finished(tmp_path, undisturbed):
    """A job that is cut into short launches ends in the same bits as one that is not."""
    statuses = []
    for _ in range(TOTAL):
        status, told = launch(tmp_path, max_time=0.12)
        statuses.append(status)
        if status != 75:
            break
    assert statuses[0] == 75
    assert (statuses[-1], told) == (0, undisturbed)
