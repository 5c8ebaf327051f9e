"""The examples run, keep their promises, and stay short."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from ..forked import Script

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(cwd: Path, name: str, *arguments: object) -> str:
    """The last line that an example prints."""
    return Script(EXAMPLES / name, *arguments, cwd=cwd).lines()[-1]


def test_the_newcomers_script_is_at_most_twenty_lines_and_resumes(tmp_path):
    """The reference job fits on a slide, reports its progress, and running it again trains nothing more."""
    lines = [line for line in (EXAMPLES / "newcomer.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 20
    # Once as a newcomer would: in an interpreter of its own, which has imported nothing before.
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / "newcomer.py")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    checkpoints = sorted((tmp_path / "runs/newcomer/checkpoints").iterdir())
    assert len(checkpoints) == 4
    assert list((tmp_path / "runs/newcomer/logs").glob("*/tensorboard/*"))
    Script(EXAMPLES / "newcomer.py", cwd=tmp_path).lines()
    assert sorted((tmp_path / "runs/newcomer/checkpoints").iterdir()) == checkpoints


@pytest.mark.parametrize(("name", "arguments"), [("transformer.py", ["--iterations", 16]), ("gan.py", ["--epochs", 2])])
def test_an_example_that_is_stopped_goes_on_to_the_same_digest(tmp_path, name, arguments):
    """SIGTERM as soon as something has been logged; the same line again ends as if nothing had happened."""
    alone = Script(EXAMPLES / name, *arguments, "--root", "alone", cwd=tmp_path)
    stopped = Script(EXAMPLES / name, *arguments, "--root", "stopped", cwd=tmp_path).process
    while stopped.is_alive() and not any(log.stat().st_size for log in tmp_path.glob("stopped/logs/*/metrics.jsonl")):
        time.sleep(0.01)
    stopped.terminate()
    stopped.join()
    assert run(tmp_path, name, *arguments, "--root", "stopped") == alone.lines()[-1]


def test_a_sweep_trains_all_its_members_and_names_the_best(tmp_path):
    """The last line tells the learning rate, from the middle of the range, and an accuracy worth having."""
    words = run(tmp_path, "sweep.py", "--epochs", 2).split()
    rate, accuracy = float(words[3].removesuffix(":")), float(words[5])
    assert 1e-3 <= rate <= 1e-1
    assert accuracy > 0.8


def test_hypergradients_lower_the_loss_on_held_out_data(tmp_path):
    """The last line tells the loss before and after."""
    words = run(tmp_path, "hypergradient.py", "--rounds", 4).split()
    assert words[:4] == ["held", "out", "loss", "fell"]
    assert float(words[7].removesuffix(";")) < 0.8 * float(words[5])


@pytest.mark.soak  # tests/unit/test_forensics.py does the same to a smaller classifier, and so does the guide
def test_a_planted_bit_is_found_in_one_of_two_lives_of_the_demo(tmp_path):
    """The three commands name the iteration, the weight and the run."""
    output = "\n".join(Script(EXAMPLES / "planted_bit.py", "--iteration", 10, cwd=tmp_path).lines())
    assert "equal at iteration 9 (fingerprint), different at iteration 10 (fingerprint)" in output
    assert "the execution agrees with A: B was disturbed" in output
    assert "state: 1 LEAF DIFFERS (fingerprint): params['3.weight']" in output


@pytest.mark.soak  # the laws of tests/world say the same of many jobs
def test_the_number_of_processes_changes_no_bit(tmp_path):
    """A short form of `make world`: five lives of one model, one digest."""
    output = "\n".join(Script(EXAMPLES / "world.py", "--models", "digits", "--epochs", "1", cwd=tmp_path).lines())
    digests = re.findall(r"\b[0-9a-f]{64}$", output, flags=re.MULTILINE)
    assert len(digests) == 5
    assert len(set(digests)) == 1
    assert "rank 1 of 4 was killed by SIGKILL" in output


def test_one_script_is_launched_by_us_and_by_torchrun(tmp_path):
    """Unchanged, with the same digest. (That of a process alone is compared in the guide.)"""
    launched = Script(EXAMPLES / "data_parallel.py", "--epochs", "2", "--processes", "2", cwd=tmp_path).lines()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(EXAMPLES / "data_parallel.py"), "--epochs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == launched


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_in_about_a_hundred_lines(path):
    """Who wants to copy an example can read it first."""
    assert len(path.read_text().splitlines()) <= 130


class FakeTrial:
    """What the example uses of an Optuna trial, which is not installed for the tests."""

    number = 0

    def __init__(self, prune_at: int) -> None:
        self.heard: dict[int, float] = {}
        self._prune_at = prune_at

    def suggest_float(self, name, low, high, *, log):
        return 0.01

    def suggest_categorical(self, name, choices):
        return choices[0]

    def report(self, value, step):
        assert step not in self.heard
        self.heard[step] = value

    def should_prune(self):
        return max(self.heard) >= self._prune_at


def test_a_trial_of_a_search_hears_of_each_validation_once_and_may_end_the_run(tmp_path, monkeypatch):
    """Also when the run was cut short and goes on: the trial is not told again what it has heard."""
    x, y = torch.arange(4096.0).reshape(64, 1, 8, 8) / 4096, torch.arange(64) % 10
    monkeypatch.setitem(sys.modules, "images", types.SimpleNamespace(digits=lambda: (x, y, x, y)))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    pruning = importlib.import_module("pruning")
    trial = FakeTrial(prune_at=2)
    accuracy, pruned = pruning.train(trial, 0, tmp_path / "pruned", 4)
    assert (pruned, sorted(trial.heard), trial.heard[2]) == (True, [1, 2], accuracy)

    patient = FakeTrial(prune_at=9)
    pruning.train(patient, 0, tmp_path / "resumed", 2)
    patient.heard[3] = -1.0  # told by a process that was killed before its checkpoint
    pruning.train(patient, 3, tmp_path / "resumed", 5)
    assert sorted(patient.heard) == [1, 3, 4]  # the last one, where a run ends anyway, is the trial's value
    assert patient.heard[3] == -1.0
