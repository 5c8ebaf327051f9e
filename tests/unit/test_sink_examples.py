"""The sinks in examples/ through crashes and rollbacks, seen from services that cannot be cut as a file can."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import helios_fn as hf
from helios_fn.sinks import check_sinks

SINKS = Path(__file__).parents[2] / "examples" / "sinks"
INFO = hf.RunInfo("run", "iteration", 9, 1, None)


def row(iteration: int, loss: float = 0.5, kind: Any = "train") -> hf.Row:
    return hf.Row(kind, iteration, iteration, 0, {"loss": loss}, float(iteration), {"step": 0.25})


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SINKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


class Wandb(types.ModuleType):
    """What its pages say of the service: steps that lie behind are ignored, ``resume_from`` truncates the history."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.open = self.ignored = 0

    def init(self, *, project, config, name=None, id=None, resume=None, resume_from=None):
        assert project == "digits"
        assert (id is None) == (resume is None), "an id alone would overwrite the run"
        assert not (resume and resume_from), "they exclude each other"
        if resume_from is not None:
            id, step = resume_from.split("?_step=")
            self.runs[id] = {at: values for at, values in self.runs[id].items() if at <= int(step)}
        elif id is None:
            id = f"id{len(self.runs)}"
            self.runs[id] = {}
        self.open += 1
        history = self.runs[id]

        def log(values, step):
            if step < max(history, default=0):
                self.ignored += 1
            else:
                history.setdefault(step, {}).update(values)

        def finish():
            self.open -= 1

        return SimpleNamespace(id=id, log=log, finish=finish)


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class Mlflow:
    """A service that appends: runs by id, each a list of (name, value, step)."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[str, float, int]]] = {}
        self.tags: dict[str, dict[str, str]] = {}

    def create_run(self, experiment, run_name, tags):
        run = f"run{len(self.runs)}"
        self.runs[run], self.tags[run] = [], tags
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def get_run(self, run):
        return SimpleNamespace(data=SimpleNamespace(metrics={name: value for name, value, _ in self.runs[run]}))

    def get_metric_history(self, run, name):
        return [SimpleNamespace(step=step) for key, _, step in self.runs[run] if key == name]

    def log_batch(self, run, metrics):
        self.runs[run] += [(metric.key, metric.value, metric.step) for metric in metrics]


@pytest.fixture
def mlflow(monkeypatch):
    service = Mlflow()
    root, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    root.MlflowClient = lambda uri: service  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(  # type: ignore[attr-defined]
        key=key, value=value, timestamp=timestamp, step=step
    )
    monkeypatch.setitem(sys.modules, "mlflow", root)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return service


def crashed_and_resumed(make) -> Any:
    """Rows to 4, a mark after 2, a crash; then the rows from 3 on again, by a sink of another process."""
    sink = make()
    check_sinks([sink])
    sink.open(INFO, None)
    for i in (1, 2, 3, 4):
        if i == 3:
            mark = sink.flush()
        sink.write(row(i, 1 / i))
        sink.write(row(i, 2 / i, "validation"))
    sink = make()
    sink.open(INFO, mark)
    for i in (3, 4, 5):
        sink.write(row(i, 1 / i))
        sink.write(row(i, 2 / i, "validation"))
    return sink


def test_weights_and_biases_holds_each_row_once_after_a_crash(wandb):
    """Both kinds of row at their iteration, in one run."""
    make = lambda: load("weights_and_biases").WeightsAndBiases("digits", config={"lr": 0.1})  # noqa: E731
    crashed_and_resumed(make).close()
    wanted = {i: {"train/loss": 1 / i, "validation/loss": 2 / i, "observed/step": 0.25} for i in range(1, 6)}
    assert wandb.runs == {"id0": wanted}
    assert wandb.ignored == 2  # those of iteration 3, which it had passed


@pytest.mark.parametrize("how", ["rollback", "an older checkpoint"])
def test_weights_and_biases_is_rewound_when_the_run_goes_back(how, wandb, tmp_path):
    """Rows of the course that was left are gone; the iteration of the mark stays."""
    sink = load("weights_and_biases").WeightsAndBiases("digits")
    sink.open(INFO, None)
    sink.write(row(1))
    mark = sink.flush()
    sink.write(row(2))
    if how == "rollback":
        sink.close()
        sink.open(INFO, mark)
    else:
        sink = load("weights_and_biases").WeightsAndBiases("digits")
        sink.open(INFO._replace(superseded=tmp_path), mark)
    sink.write(row(2, 0.125))
    sink.close()
    sink.close()
    assert {step: values["train/loss"] for step, values in wandb.runs["id0"].items()} == {1: 0.5, 2: 0.125}
    assert wandb.open == (how != "rollback")  # the process that died closed nothing


def test_mlflow_holds_each_row_once_after_a_crash(mlflow):
    """Though it would take them twice."""
    crashed_and_resumed(lambda: load("mlflow_sink").MLflow()).close()
    wanted = [(f"{kind}/loss", n / i, i) for i in range(1, 6) for kind, n in (("train", 1), ("validation", 2))]
    assert mlflow.runs == {"run0": wanted}


@pytest.mark.parametrize("how", ["rollback", "an older checkpoint"])
def test_mlflow_begins_another_run_when_the_run_goes_back(how, mlflow, tmp_path):
    """The one before stays as it is; a tag leads to it."""
    sink = load("mlflow_sink").MLflow()
    sink.open(INFO, None)
    sink.write(row(1))
    mark = sink.flush()
    sink.write(row(2))
    if how == "rollback":
        sink.close()
        sink.open(INFO, mark)
    else:
        sink = load("mlflow_sink").MLflow()
        sink.open(INFO._replace(superseded=tmp_path), mark)
    sink.write(row(2, 0.125))
    assert mlflow.runs == {"run0": [("train/loss", 0.5, 1), ("train/loss", 0.5, 2)], "run1": [("train/loss", 0.125, 2)]}
    assert mlflow.tags["run1"] == {"continues": "run0 after iteration 1"}


def test_the_examples_are_short():
    """About thirty lines beside what they say of the service."""
    for path in SINKS.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 65


def test_the_example_of_looks_shows_weights_gradients_and_images(tmp_path, monkeypatch):
    """Once per epoch each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SINKS / "looks.py"))
    (folder,) = (tmp_path / "runs/looks/logs").glob("*/tensorboard")
    reader = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0}).Reload()
    for events in (
        reader.Histograms("weights/0.weight"),
        reader.Histograms("gradients/2.bias"),
        reader.Images("worst"),
    ):
        assert [event.step for event in events] == [15, 30]
