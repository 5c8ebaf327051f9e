"""The examples of research: each learns what it says, and those with a job resume bit for bit."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import helios_fn as hf
from helios_fn.testing import Stop, check_resume

from ..forked import Script

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """An example as a module, by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def check(job, **changes) -> None:
    """The law of resumption, for a job with another configuration, crashed once and crashed twice."""
    cfg = dataclasses.replace(job.cfg, **changes)
    check_resume(job.step, job.state, job.loader, cfg, stops=[3, [Stop(1), Stop(4)]], **job.keywords)


def test_a_curriculum_resumes_on_either_side_of_its_changes(example):
    """One phase is left by a count, the next by what validation found; the stops lie before and at the changes."""
    job = example("curriculum").job(epochs=6, samples=60, enough=0.1)
    phases = []

    class Watch(hf.Observer):
        def on_iteration(self, state):
            phases.append(state.cursor.phase)

    quiet = dataclasses.replace(job.cfg, progress=False)
    hf.run(job.step, job.state, job.loader, quiet, observers=[Watch()], **job.keywords)
    assert phases == [0, 0, 0, 1, 2, 2]
    check(job)


def test_a_world_in_the_state_resumes_in_mid_episode(example):
    """Carts, what they have earned, and the statistics of their episodes come back with the rest."""
    check(example("reinforce").job(rounds=5))


def test_reinforcement_makes_episodes_longer(example):
    """Fifty rounds of the usual job at least double the mean return."""
    reinforce, returns = example("reinforce"), []

    class Watch(hf.Observer):
        def on_row(self, row):
            returns.append(row.metrics["mean_return"])

    job = reinforce.job()
    hf.run(job.step, job.state, job.loader, dataclasses.replace(job.cfg, total=60, progress=False), observers=[Watch()])
    assert 10 < returns[0] < 40
    assert returns[-1] > 2 * returns[0]


def test_a_mean_teacher_resumes(example):
    """The teacher is a part of the state."""
    check(example("distillation").job(), unit="iteration", total=5)


def test_a_mean_teacher_makes_up_for_missing_labels(tmp_path):
    """Its accuracy is above that of the same training without it."""
    lines = Script(EXAMPLES / "distillation.py", "--epochs", 5, cwd=tmp_path).lines()
    alone, student, teacher = map(float, re.findall(r"0\.\d{3}", "\n".join(lines[:-1])))
    assert teacher > alone + 0.01
    assert student > alone


def test_fine_tuning_keeps_what_is_frozen_and_beats_a_start_from_scratch(tmp_path):
    """Said in the last lines; run again, it finds both runs finished and says the same."""
    script = EXAMPLES / "finetune.py"
    lines = Script(script, "--epochs", 4, cwd=tmp_path).lines()
    scratch, tuned = (float(line.split()[-1]) for line in lines[-3:-1])
    assert tuned > scratch + 0.02
    assert lines[-4] == "frozen:  body.0.bias, body.0.weight, body.2.bias, body.2.weight"
    assert "kept, for they were not chosen: params.head.bias, params.head.weight" in "\n".join(lines)


def test_maml_learns_weights_that_one_step_adapts(tmp_path):
    """One step from what was learned lowers the error on tasks never met; one step from random weights does not."""
    lines = Script(EXAMPLES / "maml.py", "--iterations", 120, cwd=tmp_path).lines()
    random, learned = ([float(word) for word in line.split()[-3:]] for line in lines[-3:-1])
    assert random[1] > 0.9 * random[0]
    assert learned[1] < 0.7 * random[1]


def test_three_loops_are_the_same_training(tmp_path):
    """By `run`, by `iterate` and by hand; and a training that branches goes on from each winner."""
    lines = Script(EXAMPLES / "custom_loop.py", "--rounds", 2, cwd=tmp_path).lines()
    assert len({line.split()[-1] for line in lines[-3:]}) == 1
    assert [line.split()[1] for line in lines[:2]] == ["40", "80"]
    assert float(lines[2].split()[-1]) > 0.93


def test_what_observes_a_run_changes_nothing(tmp_path):
    """A condition of one's own ends the run at the same epoch with observer and sink, and without."""
    lines = Script(EXAMPLES / "observers.py", cwd=tmp_path).lines()
    assert re.fullmatch("validation loss: [▁▂▃▄▅▆▇█]{33}", lines[-3])
    assert lines[-2].startswith("should_stop asked for it: validation/loss is 0.09")
    assert lines[-1] == "epochs 33; without observer and sink the final state is the same"


def test_a_sink_of_ones_own_resumes(example, tmp_path, capsys):
    """Its mark in the checkpoint is all that it needs: stopped and started again it draws the whole curve."""
    observers = example("observers")
    whole, halves = observers.Curve("loss"), observers.Curve("loss")
    observers.train(4, sinks=[whole])
    for epochs in (2, 4):
        observers.train(epochs, root=tmp_path, sinks=[halves])
    assert halves.values == whole.values
    assert len(whole.values) == 4
