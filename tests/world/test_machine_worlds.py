"""The state machine through worlds of several sizes, and the processes that stay for it."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import Phase, settings

import helios_fn as hf
from helios_fn.testing import Job, LawBroken
from helios_fn.testing.__main__ import main
from helios_fn.testing.machine import check_machine, training_machine
from helios_fn.testing.pool import Worlds

from . import worldly

JOBS = "tests.world.worldly"


@pytest.fixture
def _unshrunk():
    """Have a fault shown as it was found: each step towards its simplest form costs a run in other processes."""
    settings.register_profile("unshrunk", derandomize=True, database=None, phases=[Phase.generate])
    before = settings.get_current_profile_name()
    settings.load_profile("unshrunk")
    yield
    settings.load_profile(before)


def verdict(job: str, **keywords) -> str:
    with pytest.raises(LawBroken) as caught:
        check_machine(f"{JOBS}:{job}", **{"worlds": (1, 2), "examples": 8, "events": 4, **keywords})
    return "\n".join([str(caught.value), *caught.value.__notes__])


# The machine

TestThroughWorlds = training_machine(f"{JOBS}:small", worlds=(1, 2)).TestCase
TestThroughWorlds.settings = settings(max_examples=3, stateful_step_count=6)


@pytest.mark.usefixtures("_unshrunk")
def test_a_state_that_parts_is_told_with_the_change_of_the_world():
    """Law, rank and leaf: the step is exact alone."""
    found = verdict("counts_its_share")
    assert found.startswith("the world was changed from 1 to 2 processes after iteration ")
    assert "metrics['begin']" in found
    assert "state.change_world(" in found


@pytest.mark.usefixtures("_unshrunk")
def test_what_only_happens_when_a_run_is_taken_over_is_found():
    """One process begins, two go on; the names that lead to the cause are told."""
    found = verdict("warms_up_again", examples=30)
    assert "the world was changed from 1 to 2 processes after iteration" in found
    assert "is not that of the run without interruptions" in found
    assert "names os.environ, which depends on the process" in found


@pytest.mark.usefixtures("_unshrunk")
def test_a_run_that_fails_in_another_world_is_told_so():
    """With the rank and its error."""
    found = verdict("fails_when_shared", examples=2)
    assert "the world was changed from 1 to 2 processes after iteration" in found
    assert ": the run fails there; without interruptions it does not" in found
    assert "where are the others?" in found


@pytest.mark.soak
def test_a_sound_job_may_change_its_world_in_any_order_of_events():
    """With everything that makes it hard, and numbers of workers too."""
    check_machine(f"{JOBS}:sound", worlds=(1, 2, 4), examples=60)


@pytest.mark.parametrize(
    ("job", "worlds", "error", "told"),
    [
        (f"{JOBS}:small", (1, 4), ValueError, "4 processes, and an iteration only 3 micro-batches"),
        (f"{JOBS}:small", (0, 1), ValueError, "from 1 on"),
        (f"{JOBS}:small", (), ValueError, "from 1 on"),
        (f"{JOBS}:small", (1, "2"), TypeError, "numbers of processes"),
        (f"{JOBS}:without_micro_batches", (1, 2), ValueError, "set micro_batches in cfg"),
        (worldly.small(), (1, 2), ValueError, "name it as job="),
    ],
    ids=["too many", "none", "empty", "no number", "nothing to share", "no name"],
)
def test_worlds_that_cannot_be_are_refused(job: Job | str, worlds, error, told):
    """When the machine is made, before anything runs."""
    with pytest.raises(error, match=told):
        training_machine(job, worlds=worlds)


def test_without_other_worlds_there_is_no_such_rule():
    """And nothing starts a process."""
    assert not hasattr(training_machine(worldly.small()), "change_world")
    assert hasattr(training_machine(f"{JOBS}:small", worlds=(2,)), "change_world")


def test_the_command_takes_numbers_of_processes_for_both_laws(capsys):
    """They do not apply where there is nothing to share."""
    options = ["--processes", "1,2", "--examples", "1"]
    assert main([f"{JOBS}:small", "--laws", "world,machine", *options]) == 0
    assert capsys.readouterr().out == "world: holds\nmachine: holds\n"
    assert main([f"{JOBS}:without_micro_batches", "--laws", "world,machine", *options]) == 0
    told = capsys.readouterr().out
    assert "world: does not apply\nthe law holds for a fixed number of micro-batches" in told
    assert "machine: does not apply\nits world cannot be changed: the law holds for a fixed number" in told


# The processes


def who(word: str) -> tuple[int, int, str, str]:
    return os.getpid(), os.getppid(), os.environ["RANK"] + "/" + os.environ["WORLD_SIZE"], word


def fails(rank: str, how: str) -> str:
    if os.environ["RANK"] == rank:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError("no such column")
    return "well"


def test_the_processes_of_a_world_stay():
    """Values come in the order of ranks, from the same processes each time; each size has its own."""
    with Worlds() as worlds:
        first, again = worlds(who, "a", processes=2), worlds(who, "b", processes=2)
        (alone,) = worlds(who, "c", processes=1)
    assert [each[2:] for each in (*first, *again, alone)] == [
        ("0/2", "a"),
        ("1/2", "a"),
        ("0/2", "b"),
        ("1/2", "b"),
        ("0/1", "c"),
    ]
    assert [each[0] for each in first] == [each[0] for each in again]
    assert alone[0] not in [each[0] for each in first]
    for pid in (*(each[0] for each in first), alone[0]):
        assert not alive(pid)


@pytest.mark.parametrize(
    ("how", "told"), [("raises", "raised KeyError: 'no such column'"), ("dies", "was killed by SIGKILL")]
)
def test_a_rank_that_fails_ends_its_world_and_the_next_call_has_another(how: str, told: str):
    """It is told as `launch` tells it."""
    with Worlds() as worlds:
        before = worlds(who, "a", processes=2)
        with pytest.raises(hf.LaunchFailed, match=f"rank 1 of 2 {told}"):
            worlds(fails, "1", how, processes=2)
        after = worlds(who, "b", processes=2)
    assert not {each[0] for each in before} & {each[0] for each in after}


def test_one_of_several_processes_starts_no_worlds(monkeypatch):
    """It would wait for ranks that never come."""
    monkeypatch.setenv("RANK", "0")
    with Worlds() as worlds, pytest.raises(RuntimeError, match="from a process that is alone"):
        worlds(who, "a", processes=2)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
