"""The law of the world for users: what `check_world` finds, and what it says."""

from __future__ import annotations

import pytest

from helios_fn.testing import JobFailed, LawBroken, check_world

JOBS = "tests.world.worldly"


def verdict(job: str, kind: type[Exception], processes=(1, 2)) -> str:
    with pytest.raises(kind) as caught:
        check_world(f"{JOBS}:{job}", processes=processes)
    return str(caught.value)


def test_a_sound_job_keeps_the_law():
    """With dropout, batch statistics, a ragged tail and validation; also when it goes on with fewer processes."""
    check_world(f"{JOBS}:sound", processes=(1, 3))


def test_a_step_with_a_mean_of_its_own_breaks_the_law():
    """The leaf and the remedy are named."""
    found = verdict("own_mean", LawBroken)
    assert found.startswith("2 processes: the processes hold different states after iteration 1: params")
    assert "hf.microsteps" in found


def test_a_job_that_looks_at_the_number_of_processes_breaks_the_law():
    """What differs first is named: here the initial state."""
    found = verdict("by_processes", LawBroken)
    assert found.startswith("a run of 2 processes differs from one of 1 process: the job has another initial state")


def test_a_job_that_fails_only_with_others_breaks_the_law():
    """And one that always fails does not: there is nothing to check."""
    found = verdict("only_alone", LawBroken)
    assert found.startswith("the job fails with 2 processes; with 1 it does not:")
    assert "OSError: the data are on another disk" in found
    assert "the job itself failed, with 1 process:" in verdict("broken", JobFailed)


def test_without_a_fixed_number_of_micro_batches_there_is_no_law():
    assert "set micro_batches in cfg" in verdict("without_micro_batches", JobFailed)


@pytest.mark.parametrize("processes", [(), (2,), (2, 2), (0, 1), (1, True, 2.5)])
def test_there_must_be_numbers_to_compare(processes):
    assert "at least two different numbers" in verdict("sound", ValueError, processes)
