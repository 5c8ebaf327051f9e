"""Law 9 and law 1 over real processes: SIGKILL at any instant loses nothing beyond the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf

from ..jobs import Case
from ..strategies import cases, examples
from . import child

# Children fork from a server that has imported once what takes seconds, and never computed anything.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.crash.child", "torch._dynamo"])


@dataclasses.dataclass(frozen=True)
class Kill:
    """SIGKILL ``delay`` seconds after the process has reported ``iteration``."""

    iteration: int
    delay: float
    workers: int = 0


def leg(case: Case, root: Path, workers: int, ambient: int, kill: Kill | None):
    """One process: killed as told, or run to its end; gives its last message."""
    parent, other = CONTEXT.Pipe()
    process = CONTEXT.Process(target=child.train, args=(case, str(root), workers, ambient, other))
    process.start()
    other.close()
    message = None
    try:
        while True:
            message = parent.recv()
            if kill is not None and message == kill.iteration:
                time.sleep(kill.delay)
                process.kill()
                wait_for_death(process.pid)
                _orphans.append(process.pid)
                return None
    except EOFError:
        pass
    process.join(60)
    if kill is None:
        assert process.exitcode == 0, "the child failed: its traceback is above"
    return message


_orphans: list[int] = []  # process groups of the killed, which may still have loader workers


def end_orphans() -> None:
    while _orphans:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_orphans.pop(), signal.SIGKILL)


def wait_for_death(pid: int) -> None:
    """Wait until a process is gone. Joining it would wait for its loader workers too: they outlive it by seconds,
    and the next process must not mind."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.001)


def outcome(case: Case, root: Path, kills: list[Kill], last_workers: int = 0):
    try:
        for number, kill in enumerate(kills):
            leg(case, root, kill.workers, ambient=number + 1, kill=kill)
        return leg(case, root, last_workers, ambient=99, kill=None)
    finally:
        end_orphans()


kills = st.builds(Kill, st.integers(1, 6), st.sampled_from([0.0, 0.001, 0.003, 0.01]), st.sampled_from([0, 0, 2]))


@settings(max_examples=examples(16))
@given(
    case=cases(max_iterations=6), kills=st.lists(kills, min_size=1, max_size=3), last_workers=st.sampled_from([0, 2])
)
def test_killed_processes_end_in_the_bits_of_one_left_alone(tmp_path_factory, case: Case, kills, last_workers):
    """Final state, reason and log rows are equal; loader workers may change between the processes."""
    root = tmp_path_factory.mktemp("runs")
    alone = outcome(case, root / "alone", [])
    killed = outcome(case, root / "killed", sorted(kills, key=lambda kill: kill.iteration), last_workers)
    assert killed == alone


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_killed_while_saving_at_every_iteration(tmp_path, unit):
    """A save-heavy run killed in or right after each of its saves, again and again, still ends right."""
    case = Case(
        unit=unit,
        total=8 if unit == "iteration" else 2,
        samples=12,
        augment="torch",
        dropout=True,
        batch_norm=True,
        ema=True,
        schedule=True,
        checkpoint_every=hf.Every(1, "iteration"),
        validate_every=hf.Every(1, "iteration"),
        early_stop=50,
    )
    alone = outcome(case, tmp_path / "alone", [])
    kills = [Kill(iteration, 0.0005 * iteration) for iteration in range(1, 7)]
    assert outcome(case, tmp_path / "killed", kills) == alone
