"""The law of the world for users: what `check_world` finds, and what it says."""

from __future__ import annotations

import pytest

from helios_fn.testing import JobFailed, LawBroken, check_world

JOBS = "tests.world.worldly"


def verdict(job: str, kind: type[Exception], processes=(1, 2), **keywords) -> str:
    """The message, and what Hypothesis has noted."""
    with pytest.raises(kind) as caught:
        check_world(f"{JOBS}:{job}", processes=processes, **keywords)
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


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


@pytest.mark.parametrize(("examples", "error"), [(0, ValueError), (True, TypeError)])
def test_a_number_of_examples_that_is_none_is_refused(examples, error):
    """As by all laws."""
    assert "examples must be" in verdict("small", error, examples=examples)


def test_a_sound_job_keeps_the_law_in_generated_courses():
    """Through worlds of any size, by leaving and by crashes."""
    check_world(f"{JOBS}:sound", processes=(1, 2), examples=4)


@pytest.mark.soak
def test_a_sound_job_keeps_the_law_in_many_courses():
    """More of them, and more processes."""
    check_world(f"{JOBS}:sound", processes=(1, 2, 4), examples=60)


@pytest.mark.soak
def test_the_falling_course_of_the_quick_form_does_not_meet_every_fault():
    """From two to one, nobody sees what two do that did not begin the run."""
    check_world(f"{JOBS}:warms_up_again", processes=(1, 2))


def test_generated_courses_find_what_happens_when_a_world_grows():
    """The shortest course is shown, where it parts, and what the step knows of its process."""
    found = verdict("warms_up_again", LawBroken, examples=12)
    assert " up to iteration 1" in found
    assert "then 2 processes, differs from one of 1 process" in found
    assert "names os.environ, which depends on the process" in found
    assert "_Leg(processes=2, stop=None)" in found


def test_a_metric_of_ones_own_share_is_found_by_its_rank():
    """It is right alone, and on rank 0."""
    found = verdict("counts_its_share", LawBroken, examples=4)
    assert "metrics['begin']" in found
