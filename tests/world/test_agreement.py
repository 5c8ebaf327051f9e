"""What processes decide together, when to stop, whether they still agree, how to start."""

from __future__ import annotations

import os

import pytest

from helios_fn.checkpoint import Store

from . import agreeing, troubled

DONE = "TOTAL"


@pytest.fixture(scope="module")
def whole(pool, tmp_path_factory):
    """The digest of the uninterrupted run of one process."""
    ((digest, *rest),) = pool(agreeing.train, str(tmp_path_factory.mktemp("whole")), processes=1)
    assert rest == [DONE, 9, ""]
    return digest


def the_same(outcomes):
    """What all ranks have told."""
    assert len(set(outcomes)) == 1, outcomes
    return outcomes[0]


def check_goes_on(pool, root, whole, processes):
    assert the_same(pool(agreeing.train, str(root), processes=processes)) == (whole, DONE, 9, "")


# When to stop.


@pytest.mark.parametrize(("who", "name"), [(0, "SIGTERM"), (1, "SIGINT"), (2, "SIGUSR1")])
def test_a_signal_to_any_rank_stops_all_after_the_same_iteration(pool, tmp_path, whole, who, name):
    """With its name as the message; another number of processes goes on to the bits of the whole run."""
    digest, reason, iteration, message = the_same(pool(agreeing.signalled, str(tmp_path), who, name, 3, processes=3))
    assert (reason, message) == ("SIGNAL", name)
    assert 3 <= iteration <= 6
    assert digest != whole
    check_goes_on(pool, tmp_path, whole, 2)


def test_a_second_signal_aborts_and_the_others_fail(pool, tmp_path, whole):
    """Who is aborted saves nothing; the others do not wait for it."""
    outcomes = pool(agreeing.signalled_twice, str(tmp_path), 1, processes=2)
    assert outcomes[1] == ("KeyboardInterrupt",)
    kind, message, cause = outcomes[0]
    assert (kind, cause) == ("RunFailed", "PeerLost")
    assert "rank 1 failed" in message
    assert "KeyboardInterrupt" in message
    check_goes_on(pool, tmp_path, whole, 1)


@pytest.mark.parametrize("who", [0, 1])
def test_the_clock_of_any_rank_stops_all(pool, tmp_path, whole, who):
    _, reason, iteration, message = the_same(pool(agreeing.timed, str(tmp_path), who, processes=2))
    assert (reason, message) == ("TIME", "max_time=50.0")
    assert iteration < 9
    check_goes_on(pool, tmp_path, whole, 3)


@pytest.mark.parametrize("stopped", [agreeing.stopped_by_predicate, agreeing.stopped_early])
def test_what_the_state_decides_needs_no_agreement(pool, tmp_path, stopped):
    """A predicate and early stop end all ranks where they end one."""
    (alone,) = pool(stopped, str(tmp_path / "1"), processes=1)
    assert alone[1] in ("SHOULD_STOP", "EARLY_STOP")
    assert the_same(pool(stopped, str(tmp_path / "3"), processes=3)) == alone


@pytest.mark.parametrize("policy", ["raise", "skip", "stop", "rollback"])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_all(pool, tmp_path, policy):
    """Each policy does the same on all of them as on one process, bit for bit."""
    (alone,) = pool(agreeing.non_finite, str(tmp_path / "1"), policy, 3, processes=1)
    both = pool(agreeing.non_finite, str(tmp_path / "2"), policy, 3, processes=2)
    if policy == "raise":
        for kind, message, cause in [alone, *both]:
            assert (kind, cause) == ("RunFailed", "NonFiniteError")
            assert "not finite in iteration 4" in message
    else:
        assert the_same(both) == alone
        assert alone[1] == ("NON_FINITE" if policy == "stop" else DONE)


# Whether they still agree.


def test_a_step_without_microsteps_is_found_after_the_first_iteration(pool, tmp_path):
    """The error names the leaf and the remedy, on every rank, and only the initial state is on disk."""
    for kind, message, cause in pool(agreeing.own_gradients, str(tmp_path), processes=3):
        assert (kind, cause) == ("RunFailed", "PurityError")
        assert "different states after iteration 1: params['first.weight'] is another on rank" in message
        assert "hf.microsteps" in message
    assert iterations(tmp_path) == [0]


def test_noise_of_one_rank_is_found_after_the_first_iteration(pool, tmp_path):
    for kind, message, cause in pool(agreeing.diverging, str(tmp_path), "noise", 1, processes=3):
        assert (kind, cause) == ("RunFailed", "PurityError")
        assert "params['last.bias'] is another on ranks 0, 2 than on rank 1" in message
    assert iterations(tmp_path) == [0]


def test_a_bit_that_flips_later_is_found_at_the_cadence_and_never_saved(pool, tmp_path):
    """Found at iteration 6 where it comes in 5; nothing after that becomes a checkpoint."""
    outcomes = pool(agreeing.diverging, str(tmp_path), "flip", 5, check_replicas_every=3, processes=2)
    for kind, message, cause in outcomes:
        assert (kind, cause) == ("RunFailed", "PurityError")
        assert "different states after iteration 6" in message
    assert max(iterations(tmp_path)) == 3


def iterations(root) -> list[int]:
    return sorted(entry.iteration for entry in Store(root, "run").entries())


# How to start.


def test_only_rank_0_looks_at_the_folder(pool, tmp_path, whole):
    """The others have a root that they could not even make, on a fresh start and on a resumed one."""
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    roots = [str(tmp_path / "root"), str(no_folder / "below"), "/proc/none"]
    assert the_same(pool(agreeing.in_roots, roots, total=5, processes=3))[1:3] == (DONE, 5)
    assert the_same(pool(agreeing.in_roots, roots, processes=3)) == (whole, DONE, 9, "")


def test_the_initial_state_of_rank_0_counts(pool, tmp_path, whole):
    assert the_same(pool(agreeing.from_different_states, str(tmp_path), processes=3)) == (whole, DONE, 9, "")


def test_an_error_of_rank_0_at_the_start_is_one_of_all(pool, tmp_path):
    """Of the same type: a locked root, a checkpoint of another run, none where one is wanted, only damaged ones."""
    root = tmp_path / "root"
    for change, wanted in [({"resume": "last"}, "CheckpointError"), ({}, None)]:
        found = pool(agreeing.in_roots, [str(root)] * 2, total=3, **change, processes=2)
        assert [each[0] for each in found] == [wanted] * 2 if wanted else the_same(found)[1] == DONE
    with Store(root, "run").lock():
        check_same_error(pool, root, "RootLocked")
    check_same_error(pool, root, "ResumeRefused", micro_batches=3)
    for path in (root / "checkpoints").iterdir():
        if path.is_dir():
            next(path.glob("*.safetensors")).write_bytes(b"")
    check_same_error(pool, root, "CheckpointError")


def check_same_error(pool, root, kind, **changes):
    (mine, reason, _), (theirs, told, _) = pool(agreeing.in_roots, [str(root)] * 2, **changes, processes=2)
    assert mine == theirs == kind
    assert told == f"rank 0 failed: {reason}"


def test_more_processes_than_micro_batches_are_refused_by_each(pool, tmp_path):
    """Before anything is written."""
    for kind, message, _ in pool(agreeing.train, str(tmp_path / "root"), micro_batches=2, processes=3):
        assert kind == "ValueError"
        assert message.startswith("3 processes cannot share 2 micro-batches per iteration")
    assert not os.path.exists(tmp_path / "root")
    assert troubled.CASE.micro_batches == 4
