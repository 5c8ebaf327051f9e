"""The state machine through worlds of several sizes, and the processes that stay for it."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings

import helios_fn as hf
from helios_fn.testing import Job, LawBroken, LawDoesNotApply
from helios_fn.testing.catalogue import LAWS
from helios_fn.testing.machine import check_machine, training_machine
from helios_fn.testing.pool import Worlds
from helios_fn.testing.spec import Subject

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


def test_the_law_by_name_takes_processes():
    """For the command and the plugin; it does not apply where there is nothing to share."""
    LAWS["machine"](Subject(f"{JOBS}:small"), processes=(1, 2), examples=1)
    with pytest.raises(LawDoesNotApply, match=r"its world cannot be changed: .* set micro_batches"):
        LAWS["machine"](Subject(f"{JOBS}:without_micro_batches"), processes=(1, 2), examples=1)


# The processes


def who(word: str) -> tuple[int, int, str, str]:
    return os.getpid(), os.getppid(), os.environ["RANK"] + "/" + os.environ["WORLD_SIZE"], word


def fails_on(rank: str) -> str:
    if os.environ["RANK"] == rank:
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


def test_a_rank_that_fails_ends_its_world_and_the_next_call_has_another():
    """It is told as `launch` tells it."""
    with Worlds() as worlds:
        before = worlds(who, "a", processes=2)
        with pytest.raises(hf.LaunchFailed, match="rank 1 of 2 raised KeyError: 'no such column'"):
            worlds(fails_on, "1", processes=2)
        after = worlds(who, "b", processes=2)
    assert not {each[0] for each in before} & {each[0] for each in after}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
