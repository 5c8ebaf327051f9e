"""``train`` and ``test`` on the command line: what they print, their status, and that a kill costs nothing."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint.files import FileSystem
from helios_fn.cli import main, train
from helios_fn.cli.train import status
from helios_fn.experiment import Outcome
from helios_fn.registry import OBSERVERS

EXAMPLES = Path(__file__).parents[2] / "examples" / "experiment"
PARTS = """
import torch
from helios_fn.registry import DATASETS, MODELS, LOSSES

@DATASETS.register("{name}_rows")
def rows(n=12):
    return torch.utils.data.TensorDataset(torch.arange(n * 2.0).reshape(n, 2) / n, torch.arange(n) % 2)

@MODELS.register("{name}_linear")
def linear(width=2):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 2))

@LOSSES.register("{name}_broken")
def broken(model, params, buffers, batch, key):
    raise RuntimeError("this loss is broken")
"""
TEXT = """
discover = ["{name}"]
[run]
unit = "iteration"
total = 4
root = "{root}"
validate_every = 2
progress = false
[data]
dataset = "{name}_rows"
batch_size = 4
[valid]
dataset = "{name}_rows"
batch_size = 6
[model]
name = "{name}_linear"
[loss]
name = "cross_entropy"
metrics = [{{name = "accuracy"}}]
[optimizer]
name = "adamw"
lr = 0.01
"""


COUNTER = itertools.count()


@OBSERVERS.register
class Killer(hf.Observer):
    """Kills its own process, which cannot do anything about it."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_iteration(self, state: hf.TrainState) -> None:
        if state.counters.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    """The commands let packages be found beside the file: not after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def file(tmp_path) -> Path:
    """An experiment with a module of its parts beside it; both are new for each test."""
    name = f"parts_{next(COUNTER)}"
    (tmp_path / f"{name}.py").write_text(PARTS.format(name=name))
    path = tmp_path / "experiment.toml"
    path.write_text(TEXT.format(name=name, root=tmp_path / "root"))
    importlib.invalidate_caches()
    return path


@pytest.fixture
def call(capsys):
    """Runs a command in this process: status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as end:
            found = int(end.code or 0)
        return (found, *capsys.readouterr())

    return run


class TestTrain:
    def test_a_file_is_all_that_a_run_needs(self, file, call):
        """Its reason and its metrics are printed, and the same line again trains nothing."""
        expected = (0, "iteration 4: the total was reached\n")
        for _ in range(2):
            code, out, _ = call("train", file)
            assert (code, out[: len(expected[1])]) == expected
            assert out.splitlines()[1].startswith("accuracy ")
        longer = call("train", file, "--set", "run.total=6")
        assert longer[1].startswith("iteration 6: ")

    def test_show_prints_what_would_be_run(self, file, call):
        """With what was set, as a file that can be run."""
        code, out, _ = call("train", file, "--set", "optimizer.lr=1e-3", "--set", "model.width=3", "--show")
        assert code == 0
        assert hf.Experiment.loads(out) == hf.Experiment.load(file, {"optimizer.lr": 1e-3, "model.width": 3})
        assert not (file.parent / "root").exists()

    @pytest.mark.parametrize(
        ("setting", "code", "message"),
        [
            ("run.totl=3", 1, "the override of run.totl: [run] has no key 'totl'; did you mean 'total'?"),
            ("model.widht=3", 1, "experiment.toml:15, with the override of model.widht: model '"),
            ("run.progress=False", 2, "run.progress: False is no TOML value: write false"),
            ("run.total", 2, "write KEY=VALUE, such as optimizer.lr=1e-3; got run.total"),
            ("=3", 2, "write KEY=VALUE"),
            ("discover=['none_such']", 1, "there is no package 'none_such' to discover"),
        ],
    )
    def test_a_mistake_takes_one_line(self, file, call, setting, code, message):
        """On stderr; nothing is written."""
        found, _, err = call("train", file, "--set", setting)
        assert (found, err.count("\n")) == (code, 1)
        assert message in err
        assert not (file.parent / "root").exists()

    def test_a_file_that_is_none_is_named(self, tmp_path, call):
        """Missing, a folder, or something else."""
        assert f"there is no experiment {tmp_path / 'none.toml'}\n" in call("train", tmp_path / "none.toml")[2]
        assert "is a folder, not the TOML file of an experiment" in call("train", tmp_path)[2]
        (tmp_path / "x.toml").write_bytes(b"\xff")
        assert "x.toml is not TOML: it is not in UTF-8" in call("train", tmp_path / "x.toml")[2]

    def test_a_sweep_ends_in_a_table(self, file, call):
        """A line for each member, also for one that failed; status 1 then."""
        name = hf.Experiment.load(file).discover[0]
        file.write_text(file.read_text() + f'[sweep]\nloss.name = ["mse", "{name}_broken", "cross_entropy"]\n')
        file.write_text(file.read_text().replace('metrics = [{name = "accuracy"}]\n', ""))
        code, out, _ = call("train", file)
        assert code == 1
        lines = out.splitlines()
        assert [line.split()[0] for line in lines] == [
            "member", "loss.name=mse", f"loss.name={name}_broken", "loss.name=cross_entropy"
        ]  # fmt: skip
        assert "FAILED" in lines[1]
        assert "mse compares equal shapes" in lines[1]
        assert "this loss is broken" in lines[2]
        assert lines[3].endswith("the total was reached")

    def test_a_failure_shows_the_users_own_code(self, file, call):
        """Its frames and one line, without the library's; these come with --traceback."""
        name = hf.Experiment.load(file).discover[0]
        code, _, err = call("train", file, "--set", f"loss={name}_broken")
        lines = err.splitlines()
        assert code == 1
        assert lines[0].startswith("Traceback of your own code")
        assert f'{name}.py", line 15, in broken' in lines[1]
        assert "RuntimeError: this loss is broken" in lines[-1]
        assert not any("helios_fn/" in line for line in lines[:-1])
        with pytest.raises(hf.RunFailed):
            call("train", file, "--set", f"loss={name}_broken", "--traceback")

    def test_a_failure_without_code_of_the_user_shows_none(self, file, call, monkeypatch):
        """Python's own library is not what somebody wrote: a disk that is full takes one line."""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(FileSystem, "write", mock.Mock(side_effect=full))
        code, _, err = call("train", file)
        assert code == 1
        assert "Traceback" not in err
        assert "No space left on device" in err.splitlines()[-1]

    def test_processes_are_launched_with_what_was_set(self, file, call, monkeypatch):
        """And the worst of their statuses is the command's."""
        asked = []

        def launch(fn, *arguments, **options):
            asked.append((fn.__name__, arguments, options))
            return [0, 75]

        monkeypatch.setattr(train, "launch", launch)
        assert call("train", file, "--set", "seed=3", "--processes", "2")[0] == 75
        assert asked == [("_train", (file, {"seed": 3}), {"processes": 2})]
        assert call("train", file, "--processes", "0")[0] == 2

    @pytest.mark.soak
    def test_two_processes_make_the_bits_of_one(self, file, call):
        """Where run.micro_batches says how many there are."""
        digests = []
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        for folder, more in (("one", []), ("two", ["--processes", "2"])):
            settings = ["--set", f"run.root={file.parent / folder}", "--set", "run.micro_batches=2"]
            assert call("train", file, *settings, *more)[0] == 0
            digests.append(tree.digest(hf.load_run(file.parent / folder).state))
        torch.set_num_threads(before)
        assert digests[0] == digests[1]

    @pytest.mark.parametrize(
        ("reasons", "code"),
        [
            ([hf.Reason.TOTAL, hf.Reason.EARLY_STOP], 0),
            ([hf.Reason.TOTAL, hf.Reason.SIGNAL], 75),
            ([hf.Reason.TIME, None], 75),
            ([None, hf.Reason.TOTAL], 1),
            ([hf.Reason.NON_FINITE], 1),
        ],
        ids=str,
    )
    def test_the_status_tells_whether_the_same_line_would_go_on(self, reasons, code):
        """75 where it would; 1 where something failed."""
        assert status([Outcome("a", {}, 1, reason) for reason in reasons]) == code


class TestTest:
    def test_a_file_and_a_folder_give_the_same_metrics(self, file, call):
        """Those of the last validation, where there is no [test]."""
        trained = call("train", file)[1].splitlines()[1].split()
        for path in (file, file.parent / "root"):
            code, out, _ = call("test", path)
            assert code == 0
            assert out.split() == trained

    def test_a_folder_asks_before_it_imports(self, file, call, monkeypatch):
        """And takes --discover or --trust for an answer."""
        call("train", file)
        name = hf.Experiment.load(file).discover[0]
        monkeypatch.delitem(sys.modules, name)
        code, _, err = call("test", file.parent / "root")
        assert (code, err.count("\n")) == (1, 1)
        assert f"names the package {name}, and what a checkpoint names is not imported unasked" in err
        assert call("test", file.parent / "root", "--discover", name)[0] == 0
        monkeypatch.delitem(sys.modules, name)
        assert call("test", file.parent / "root", "--trust")[0] == 0

    def test_each_member_of_a_sweep_has_its_line(self, file, call):
        """Trained one after another or together."""
        file.write_text(file.read_text() + "[sweep]\noptimizer.lr = [0.01, 0.1]\n")
        for more in ([], ["--set", "sweep.together=true", "--set", f"run.root={file.parent / 'all'}"]):
            assert call("train", file, *more)[0] == 0
            _, out, _ = call("test", file, *more)
            assert [line.split()[0] for line in out.splitlines()] == ["member", "lr=0.01", "lr=0.1"]

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (("validate_every = 2\n", ""), "there is nothing to test on: add a section [test]"),
            (("root = ", "name = "), "keeps no checkpoints: set run.root, and train"),
        ],
    )
    def test_what_cannot_be_tested_says_why(self, file, call, edit, message):
        """In one line."""
        text = file.read_text()
        if "validate" in edit[0]:
            start = text.index("[valid]")
            text = text[:start] + text[text.index("[model]") :]
            edit = ("validate_every = 2\n", "checkpoint_every = 4\n")
        else:
            edit = (next(line for line in text.splitlines() if line.startswith("root")), "")
        file.write_text(text.replace(*edit))
        call("train", file)
        code, _, err = call("test", file)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err


def killed(path: str, settings: list[str], iteration: int) -> None:
    torch.set_num_threads(1)
    main(["train", path, *settings, "--set", f'observers=[{{name="Killer", iteration={iteration}}}]'])


def test_the_example_survives_a_kill_with_the_same_bits(tmp_path, call):
    """Trained, killed, trained again and tested by nothing but the commands in its first lines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    short = ["--set", "run.unit=iteration", "--set", "run.total=6", "--set", "run.validate_every=6"]
    short += ["--set", "run.checkpoint_every=2", "--set", "run.progress=false", "--set", "data.samples=160"]
    short += ["--set", "run.async_save=false"]  # so that the second checkpoint is there when it is killed
    roots = {name: tmp_path / name for name in ("alone", "killed")}
    settings = {name: [*short, "--set", f"run.root={root}"] for name, root in roots.items()}
    with pytest.raises(hf.LaunchFailed, match="SIGKILL"):
        hf.launch(killed, str(EXAMPLES / "digits.toml"), settings["killed"], 3, processes=1)
    assert len(list((roots["killed"] / "checkpoints").iterdir())) == 2
    found = {}
    for name, root in roots.items():
        assert call("train", EXAMPLES / "digits.toml", *settings[name])[0] == 0
        found[name] = tree.digest(hf.load_run(root, discover=["digits_parts"]).state)
    torch.set_num_threads(before)
    assert found["alone"] == found["killed"]
    assert "accuracy" in call("test", EXAMPLES / "digits.toml", *settings["killed"])[1]


def test_the_examples_are_experiments():
    """Each file in the folder is read, as its sweep is."""
    for path in EXAMPLES.glob("*.toml"):
        assert hf.Experiment.load(path).members()
