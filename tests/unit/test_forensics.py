"""Two runs that differ by one planted bit: where they part, which of them was disturbed, and what an iteration did."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

import helios_fn as hf
from helios_fn.cli import main
from helios_fn.forensics import bisect, compare, gather, replay
from helios_fn.forensics.debugging import Debugger

from . import forensic
from .forensic import BAD, job, train

SPEC = "tests.unit.forensic:job"
WEIGHT = "params['5.weight']"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run, the same again, one with a flipped bit, and both without fingerprints."""
    folder = tmp_path_factory.mktemp("runs")
    made = job()
    flipped = forensic.flipping(made.step)
    train(folder / "a", made)
    train(folder / "same", made)
    train(folder / "b", made, step=flipped)
    train(folder / "sparse-a", made, log=3, save=3, fingerprint=None)
    train(folder / "sparse-b", made, log=3, save=3, fingerprint=None, step=flipped)
    return folder


class Spoilt(forensic.Noisy):
    """The images, of which one has another pixel."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image.index_fill(2, torch.tensor([0]), 0.5) if index == 11 else image), label


@pytest.fixture
def call(capsys):
    """Runs a command in this process: status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return run


class TestCompare:
    def test_the_first_iteration_and_leaf_are_named(self, runs, call):
        """The bit is in the state of iteration 7, and the batch of that iteration is equal: so says the command."""
        status, out, _ = call("compare", runs / "a", runs / "b")
        lines = out.splitlines()
        assert status == 1
        assert lines[0] == f"equal at iteration {BAD - 1} (fingerprint), different at iteration {BAD} (fingerprint)"
        assert "the batch that the step received is equal" in lines[1]
        assert lines[2] == f"state: 1 leaf differs: {WEIGHT}"
        found = compare(runs / "a", runs / "b")
        assert (found.first, found.pinned, found.leaves) == ("state", True, (WEIGHT,))

    def test_without_fingerprints_an_interval_remains(self, runs, call):
        """Checkpoints tell between which iterations it happened, and the leaves at the later one."""
        status, out, _ = call("compare", runs / "sparse-a", runs / "sparse-b")
        assert status == 1
        assert "equal at iteration 6 (checkpoint), different at iteration 9 (checkpoint)" in out
        assert "which of iterations 7 to 9 made them differ is not known" in out
        assert f"{WEIGHT}" in out

    def test_fingerprints_of_one_are_held_against_checkpoints_of_the_other(self, runs):
        """What one run logs and the other saves can be compared."""
        found = compare(runs / "a", runs / "sparse-b")
        assert (found.equal.iteration, found.different) == (6, (9, "checkpoint"))

    def test_equal_runs_are_equal(self, runs, call):
        """With status 0, and the interval that was looked at."""
        status, out, _ = call("compare", runs / "a", runs / "same")
        assert status == 0
        assert (
            out
            == "equal in 11 iterations that both recorded; the last equal states are at iteration 10 (fingerprint)\n"
        )

    def test_other_data_are_told_from_another_state(self, runs, tmp_path):
        """The batch differs, so the data are to blame, and the micro-batch is named."""
        train(tmp_path, job(), loader=hf.Loader(Spoilt(), batch_size=3))
        found = compare(runs / "a", tmp_path)
        assert (found.first, found.batch) == ("batch", ("[0]",))
        assert found.pinned

    def test_facts_that_differ_are_listed(self, runs, tmp_path, call):
        """Configuration, environment, versions."""
        torch.set_num_threads(2)
        train(tmp_path, job(total=9))
        torch.set_num_threads(1)
        _, out, _ = call("compare", runs / "a", tmp_path)
        assert "config.total: 10 in A, 9 in B" in out

    def test_one_run_of_several_in_a_root_is_chosen_by_name(self, runs, tmp_path, call):
        """Without a name it is asked for."""
        train(tmp_path, job(total=4))
        train(tmp_path, dataclasses.replace(job(), cfg=dataclasses.replace(job(total=4).cfg, name="second")))
        status, _, errors = call("compare", runs / "a", tmp_path)
        assert (status, "holds the runs run, second" in errors) == (2, True)
        status, out, _ = call("compare", runs / "a", tmp_path, "--name", "run")
        assert (status, "A is known up to iteration 10, B up to 4" in out) == (0, True)

    def test_what_cannot_be_compared_has_a_status_of_its_own(self, runs, tmp_path, call):
        """No root, or no common iteration: status 2 and a sentence."""
        (tmp_path / "checkpoints").mkdir()
        status, _, errors = call("compare", runs / "a", tmp_path)
        assert (status, errors.count("\n")) == (2, 1)
        assert "there is no checkpoint" in errors


class TestBisect:
    def test_the_disturbed_run_is_told_from_the_other(self, runs, call):
        """The execution agrees with A in all iterations, and with B up to the one before the bit."""
        status, out, _ = call("bisect", runs / "a", runs / "b", "--job", SPEC)
        assert status == 1
        assert f"A agrees up to iteration {BAD} (fingerprint)" in out
        assert (
            f"B agrees up to iteration {BAD - 1} (fingerprint), departs at iteration {BAD} (fingerprint): in exactly"
            in out
        )
        assert "the execution agrees with A: B was disturbed" in out
        found = bisect(runs / "b", runs / "a", job())
        assert (found.disturbed, found.start.iteration, found.left.leaves) == ("left", 4, (WEIGHT,))

    def test_without_fingerprints_it_is_told_all_the_same(self, runs):
        """Then by the next checkpoint."""
        found = bisect(runs / "sparse-a", runs / "sparse-b", job())
        assert (found.disturbed, found.right.departs, found.right.pinned) == ("right", (9, "checkpoint"), False)

    def test_two_programs_part_in_an_exact_iteration(self, runs):
        """Executed side by side, whatever was logged."""
        found = bisect(runs / "sparse-a", runs / "sparse-b", job(), "tests.unit.forensic:other")
        assert found.right.departs.iteration == BAD
        assert found.right.pinned
        assert WEIGHT in found.right.leaves

    def test_data_that_differ_name_the_micro_step(self, tmp_path):
        """Of an iteration of four micro-batches the one that differs."""
        made = forensic.shared()
        train(tmp_path / "a", made)
        train(tmp_path / "b", made, loader=hf.Loader(Spoilt(), batch_size=3))
        found = bisect(tmp_path / "a", tmp_path / "b", made)
        assert found.disturbed == "right"
        (path,) = found.right.batch
        number = int(path.removeprefix("micro-batch ").partition("[")[0])
        assert found.micro_steps == (4 * (found.right.departs.iteration - 1) + number,)

    def test_equal_runs_are_not_executed(self, runs):
        """There is nothing to look for."""
        assert bisect(runs / "a", runs / "same", "no.such:job").start is None

    def test_another_job_is_refused(self, runs, call):
        """By the same facts as a resume."""
        status, _, errors = call("bisect", runs / "a", runs / "b", "--job", "tests.unit.forensic:shared")
        assert status == 2
        assert "micro_batches: saved 1, now 4" in errors


class TestReplay:
    def test_an_iteration_is_the_recorded_one(self, runs, call):
        """Its metrics, batch and state equal the log's; that of the bit differs in the leaf that was hit."""
        status, out, _ = call("replay", runs / "a", "--iteration", BAD, "--job", SPEC)
        assert status == 0
        assert f"iteration {BAD}, executed again from iteration 4" in out
        assert "metrics: equal (log)\nbatch: equal (fingerprint)\nstate: equal (fingerprint)" in out
        status, out, _ = call("replay", runs / "b", "--iteration", BAD, "--job", SPEC)
        assert status == 1
        assert f"batch: equal (fingerprint)\nstate: 1 LEAF DIFFERS (fingerprint): {WEIGHT}" in out

    def test_a_notebook_gets_all_three(self, runs):
        """The step, given the state before and the batch, makes the state after, but for what the driver writes."""
        made = job()
        found = replay(runs / "a", 3, made)
        assert (found.before.counters.iteration, found.after.counters.iteration) == (2, 3)
        again = made.step(found.before, found.batch)
        assert hf.tree.equal(again.params, found.after.params)
        assert found.agrees
        assert found.grad_norm == hf.optim.global_norm(made.step.gradients(found.before, found.batch).grads).item() > 0
        assert replay(runs / "sparse-a", 2, made).agrees is None
        assert replay(runs / "a", 3, made, device="cpu").agrees

    def test_limits_of_the_data_are_those_of_the_run(self, tmp_path):
        """Of training and of validation, which its checkpoints record: neither is taken for another run."""
        made = job(total=4)
        validate = hf.Validator(lambda p, b, batch: hf.Aux(metrics={"n": len(batch[0])}), made.new_loader())
        cfg = dataclasses.replace(
            made.cfg, limit_train_batches=3, limit_valid_batches=2, validate_every=2, sanity_batches=1
        )
        limited = dataclasses.replace(made, cfg=cfg, keywords={"validate": validate})
        cfg = dataclasses.replace(cfg, root=tmp_path, checkpoint_every=3, fingerprint_every=1)
        hf.run(made.step, made.state, made.new_loader(), cfg, validate=validate, sinks=[hf.sinks.JsonLines()])
        found = replay(tmp_path, 4, limited)
        assert found.start.iteration == 3
        assert found.agrees
        assert {check.what for check in found.checks if check.by} == {"validation", "batch", "state"}

    def test_the_debugger_stops_in_the_users_own_code(self, runs):
        """At the first line of the loss function, with its arguments in reach."""
        told = io.StringIO()
        debugger = Debugger(stdin=io.StringIO("p batch[0].shape\nc\n"), stdout=told)
        found = replay(runs / "a", 2, job(), debug=debugger)
        assert found.agrees
        assert "loss_fn()" in told.getvalue()
        assert "torch.Size([3, 1, 4, 4])" in told.getvalue()

    @pytest.mark.soak  # tests/world/test_forensics.py does the same in processes that are there already
    def test_another_number_of_processes_is_launched(self, tmp_path, call):
        """Two processes execute an iteration of four micro-batches that one has recorded."""
        train(tmp_path, forensic.shared())
        status, out, _ = call(
            "replay", tmp_path, "--iteration", 3, "--job", "tests.unit.forensic:shared", "--processes", 2
        )
        assert status == 0
        assert out.count("equal") == 3

    def test_a_run_of_an_experiment_needs_no_job(self, tmp_path, call):
        """Its checkpoints say what it is made of; also on a device that is named."""
        text = forensic.EXPERIMENT.replace("ROOT", str(tmp_path))
        hf.Experiment.loads(text).build().run()
        status, out, _ = call("replay", tmp_path, "--iteration", 6, "--device", "cpu")
        assert status == 0
        assert "metrics: not recorded\nvalidation: equal (log)\nbatch: equal (fingerprint)\nstate: equal (fi" in out

    def test_a_run_of_a_script_needs_one(self, runs, call):
        """The message says so."""
        status, _, errors = call("replay", runs / "a", "--iteration", 2)
        assert status == 2
        assert "was not written by an experiment" in errors

    def test_an_iteration_that_is_none_is_refused(self, runs, call):
        """Beyond the end, or before the start."""
        for iteration, words in ((0, "counts from 1"), (11, "the job ends before iteration 11")):
            status, _, errors = call("replay", runs / "a", "--iteration", iteration, "--job", SPEC)
            assert status == 2
            assert words in errors


def test_a_fingerprint_is_a_line_of_its_own_which_rows_leave_out(runs):
    """Short digests by leaf; `read_rows` and the other sinks do not know of it."""
    evidence = gather(runs / "a")
    (path,) = (runs / "a").glob("logs/*/metrics.jsonl")
    line = next(found for found in map(json.loads, path.read_text().splitlines()) if found["kind"] == "fingerprint")
    assert {len(digest) for digest in [*line["state"].values(), *line["batch"].values()]} == {16}
    assert list(line["batch"]) == ["[0]", "[1]"]
    assert {row.kind for row in hf.sinks.read_rows(path)} == {"train"}
    assert sorted(evidence.fingerprints) == list(range(1, 11))
