"""The kit for users: what it accepts, what it finds, and what its verdicts say."""

from __future__ import annotations

import itertools
import random as python_random
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import helios_fn as hf
from helios_fn.testing import (
    Job,
    JobFailed,
    LawBroken,
    Stop,
    check_resume,
    check_resume_processes,
    check_step,
    processes,
    run_with,
)
from helios_fn.testing.__main__ import main
from helios_fn.testing.digests import differing, leaf_digests
from helios_fn.testing.interrupt import KINDS, schedules, usual_stops

from ..forked import run

OPTIMIZER = hf.optim.sgd(0.1, momentum=0.9)
UNSEEDED = python_random.Random()


class Points(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "y": float(index % 2)}


class Careless(Points):
    """Draws from a generator of its own."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "y": UNSEEDED.random()}


def loss_fn(params, buffers, batch, key):
    loss = ((batch["x"] * params["w"]).sum(1) - batch["y"]).square().mean()
    return loss, hf.Aux(weight=len(batch["y"]))


def job(step=None, dataset=None, total=7, **keywords) -> Job:
    state = hf.init_state({"w": torch.ones(2), "unused": torch.ones(1)}, OPTIMIZER)
    every = {"validate_every": hf.Every(2, "iteration")} if "validate" in keywords else {}
    return Job(
        step or hf.make_step(loss_fn, OPTIMIZER),
        state,
        lambda: hf.Loader(dataset or Points(), 3),
        hf.RunConfig(unit="iteration", total=total, **every),
        keywords,
    )


def broken(found: Job, **keywords) -> str:
    with pytest.raises(LawBroken) as caught:
        check_resume(found.step, found.state, found.loader, found.cfg, **found.keywords, **keywords)
    return str(caught.value)


# Where to interrupt


def test_the_usual_stops_are_of_every_kind():
    """A long run is interrupted in each way, at its first iteration and at its last but one."""
    stops = usual_stops(20)
    assert {stop.kind for stop in stops} == set(KINDS)
    assert [stops[0].iteration, stops[-1].iteration] == [1, 19]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_stop_ends_a_leg(kind):
    """Afterwards a second leg goes on; two stops at one place are two interruptions."""
    trace = run_with(job(), [Stop(3, kind), Stop(3, kind)])
    assert len(trace.starts) == 3
    assert sorted(trace.batches) == list(range(7))
    assert trace.reason is hf.Reason.TOTAL


@pytest.mark.parametrize("stop", [0, -1, 8, Stop(8), [Stop(1), Stop(9)], Stop(1, "nap"), [Stop(3), Stop(2)]])
def test_stops_that_cannot_happen_are_refused(stop):
    """A stop outside the run, of no known kind or out of order would silently test nothing."""
    with pytest.raises(ValueError, match="stop"):
        schedules([stop], 7)
    found = job()
    with pytest.raises(ValueError, match="stop"):
        check_resume(found.step, found.state, found.loader, found.cfg, stops=[stop])


@pytest.mark.parametrize("stop", ["3", 2.0, True, [3], Stop("3"), []])
def test_stops_of_another_kind_of_value_are_refused(stop):
    """The error says what is accepted."""
    with pytest.raises(TypeError, match="stop"):
        schedules([stop], 7)


# What a batch is


def test_objects_that_nobody_can_compare_count_by_their_type():
    """Addresses in a ``repr`` or in an object array are no differences; arrays and scalars count by their bits."""

    def batch(value):
        objects = np.array([object(), object()])
        return {"o": object(), "a": np.array([value]), "b": objects, "s": np.float32(value), "n": SimpleNamespace()}

    assert leaf_digests(batch(1.0)) == leaf_digests(batch(1.0))
    assert len(differing(leaf_digests(batch(1.0)), leaf_digests(batch(2.0)))) == 2


def test_every_sort_of_tensor_has_a_digest():
    """Sparse and meta tensors count by dtype and shape."""
    odd = [torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.tensor(2.0, device="meta"), torch.tensor(1)]
    assert leaf_digests(odd) == leaf_digests(odd)


def test_a_job_whose_batches_hold_objects_holds_the_law():
    """No false alarm where a collate function hands over more than tensors."""
    found = job()

    def collate(samples):
        x, y = torch.stack([s["x"] for s in samples]), torch.tensor([s["y"] for s in samples])
        return {"x": x, "y": y, "names": np.array(["a"] * len(samples), dtype=object), "more": object()}

    check_resume(found.step, found.state, lambda: hf.Loader(Points(), 3, collate=collate), found.cfg, stops=[2])


# What the verdict says


def test_a_careless_dataset_is_named_with_the_leaf():
    """The data differ first: the message leads there, and to the leaf of the batch."""
    text = broken(job(dataset=Careless()), stops=[4])
    assert "['y']" in text
    assert "['x']" not in text
    assert "dataset" in text
    assert "look at the step" not in text


def test_a_step_that_draws_on_its_own_is_told_from_the_data():
    """The batches are equal, so the message leads to the step."""
    plain = hf.make_step(loss_fn, OPTIMIZER)

    def step(state, batch):
        return plain(state, {**batch, "y": batch["y"] + UNSEEDED.random()})

    text = broken(job(step), stops=[4])
    assert "from iteration 1 on" in text
    assert "look at the step" in text


def test_a_validation_that_counts_its_calls_is_told_from_the_step():
    """Only what validation found differs, so the message leads there."""
    calls = itertools.count()
    text = broken(job(validate=lambda state: {"calls": next(calls)}), stops=[4])
    assert "look at the validate function" in text


def test_an_end_that_depends_on_the_process_is_told_from_all_else():
    """Everything is equal but the end."""
    calls = itertools.count()
    text = broken(job(should_stop=lambda state: next(calls) > 9), stops=[3])
    assert "should_stop" in text


def test_an_initial_state_that_is_never_the_same_is_named():
    """Runs that do not start alike cannot be compared."""
    found = job()
    found = Job(found.step, lambda: hf.init_state({"w": torch.randn(2)}, OPTIMIZER), found.loader, found.cfg)
    text = broken(found, stops=[3])
    assert "initial state" in text
    assert "params['w']" in text


def test_a_job_that_fails_is_no_broken_law():
    """Its error is the cause; a step that is not pure is a broken law."""

    def fails(state, batch):
        raise KeyError("no such column")

    def impure(state, batch):
        state.params["w"].add_(1)
        return state

    found = job(fails)
    with pytest.raises(JobFailed, match=r"the job itself failed.*no such column") as caught:
        check_resume(found.step, found.state, found.loader, found.cfg)
    assert isinstance(caught.value.__cause__, hf.RunFailed)
    assert "not pure" in broken(job(impure))


def test_a_job_that_fails_only_when_resumed_breaks_the_law():
    """The message says after what."""
    legs = itertools.count()
    found = job()

    def loader():
        if next(legs) == 2:
            raise OSError("the data are locked")
        return found.loader()

    text = broken(Job(found.step, found.state, loader, found.cfg), stops=[3])
    assert "crash after iteration 3 fails when it is resumed" in text


# check_step


def test_parameters_that_do_not_move_are_named_on_request():
    """A parameter that the loss does not reach is found, unless it is named in ``except_for``."""
    found = job()
    batch = {"x": torch.ones(2, 2), "y": torch.zeros(2)}
    check_step(found.step, found.state, batch)
    check_step(found.step, found.state, batch, expect_updates=True, except_for=["unused"])
    with pytest.raises(LawBroken, match="did not change 1 of 2 parameters: unused"):
        check_step(found.step, found.state, batch, expect_updates=True)
    with pytest.raises(ValueError, match="no_such"):
        check_step(found.step, found.state, batch, expect_updates=True, except_for=["no_such"])


def test_a_step_that_moves_nothing_is_told_from_one_disconnected_layer():
    """A rate of 0 is another mistake, with another remedy."""
    optimizer = hf.optim.sgd(0.0)
    state = hf.init_state({"w": torch.ones(2)}, optimizer)
    with pytest.raises(LawBroken, match="no parameter"):
        check_step(
            hf.make_step(loss_fn, optimizer), state, {"x": torch.ones(2, 2), "y": torch.zeros(2)}, expect_updates=True
        )


# Processes and the command line

MODULE = """
    import torch

    import helios_fn as hf
    from tests.unit.test_testing import OPTIMIZER, job, loss_fn

    torch.set_num_threads(1)
    plain = hf.make_step(loss_fn, OPTIMIZER)
    seen = []


    def good():
        return job()


    def cached():
        def step(state, batch):
            if not seen:
                seen.append(batch["x"].mean())
            return plain(state, {**batch, "x": batch["x"] - seen[0]})

        return job(step)


    def failing():
        def step(state, batch):
            raise KeyError("no such column")

        return job(step)


    def exploding():
        raise KeyError("no such file")


    def nothing():
        return None
"""


@pytest.fixture
def forked(monkeypatch):
    """The legs are processes as ever, but fork from one that has imported torch before."""
    monkeypatch.setattr(processes.subprocess, "run", run)


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"user_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_good_job_holds_the_law_over_processes(module, forked):
    """Each part in a process of its own, ended by SIGKILL and SIGTERM."""
    check_resume_processes(f"{module}:good", stops=[[Stop(1), Stop(4, "signal")]])


def test_what_a_process_keeps_is_found_by_the_default_command(module, forked, capsys):
    """A normaliser made from the first batch that a process sees passes in one process, and fails in several."""
    assert main([f"{module}:cached", "--laws", "step,resume"]) == 0
    # By iteration 6 the save of iteration 2 is durable. By 4 it may still be on its way: a leg then starts afresh.
    assert main([f"{module}:cached", "--stops", "6"]) == 1
    told = capsys.readouterr().out
    assert "resume: holds" in told
    assert "processes: BROKEN" in told
    assert "metrics from iteration" in told
    assert "normaliser made from the first batch that a process sees" in told


@pytest.mark.parametrize("more", [[], ["--laws", "processes"], ["--laws", "resume"]])
def test_the_command_tells_a_failing_job_from_a_broken_law(module, capsys, more):
    """Status 2, and the traceback of the user's own error."""
    assert main([f"{module}:failing", *more]) == 2
    told = capsys.readouterr().out
    assert "the job itself failed" in told
    assert "KeyError: 'no such column'" in told
    assert "BROKEN" not in told


def test_the_command_shows_why_a_job_could_not_be_made(module, capsys):
    """An error inside the user's own function is shown in full."""
    assert main([f"{module}:exploding"]) == 2
    assert "KeyError: 'no such file'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "names no function"),
        (["{module}:nobody"], "has no 'nobody'"),
        (["no_such_module:job"], "there is no module 'no_such_module'"),
        (["{module}:nothing"], "returned NoneType"),
        (["{module}:good", "--laws", "steps"], "no law called 'steps'"),
        (["{module}:good", "--stops", "1,x"], "write numbers with commas between"),
        (["{module}:good", "--workers", "0,1"], "none of the laws step, processes takes workers; these do: workers"),
    ],
)
def test_the_command_says_what_it_did_not_understand(module, capsys, arguments, message):
    """Status 2 before anything runs."""
    with pytest.raises(SystemExit) as caught:
        main([argument.format(module=module) for argument in arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_refuses_stops_outside_the_run(module, capsys):
    """The message tells the range."""
    assert main([f"{module}:good", "--laws", "resume", "--stops", "3,8"]) == 2
    assert "cannot stop after iteration 8: the run has iterations 1 to 7" in capsys.readouterr().out
