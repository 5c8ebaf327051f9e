"""Rows on MLflow (pip install mlflow): the protocol `hf.Sink` with a service that can add and never take away.

MLflow keeps every value that it is given, also two of one step. After a crash it may hold values beyond the mark; a
resume is exact, so the same ones come again, and those that are there already are left out. When a run goes back and
then takes another course (a rollback, or an older checkpoint resumed on purpose), nothing can be cut: a new run begins
on the service, with the tag ``continues``, which tells where the course up to there is found.

Each row is one request, answered when the values are stored, so a mark never runs ahead of them. What was observed
(speed, time, memory) would come again with other values: it is left to `hf.sinks.JsonLines`.
"""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

import helios_fn as hf


class MLflow:
    """Logs each row at its iteration as ``train/...`` and ``validation/...`` to a run of an experiment."""

    def __init__(self, experiment_id: str = "0", *, tracking_uri: str | None = None, name: str = "mlflow") -> None:
        self.name, self._experiment, self._client = name, experiment_id, MlflowClient(tracking_uri)
        self._run, self._step = "", -1
        self._held: dict[str, int] = {}

    def open(self, info: hf.RunInfo, mark: Any) -> None:
        self._held = {}
        if mark is None or info.superseded is not None or self._step > mark["step"]:
            tags = {} if mark is None else {"continues": f"{mark['run']} after iteration {mark['step']}"}
            created = self._client.create_run(self._experiment, run_name=info.name, tags=tags)
            self._run = created.info.run_id
        else:
            self._run = mark["run"]
            for name in self._client.get_run(self._run).data.metrics:
                self._held[name] = max(each.step for each in self._client.get_metric_history(self._run, name))
        self._step = -1 if mark is None else mark["step"]

    def write(self, row: hf.Row) -> None:
        named = {f"{row.kind}/{name}": value for name, value in row.metrics.items()}
        new = {name: value for name, value in named.items() if row.iteration > self._held.get(name, -1)}
        time = int(1000 * row.time)
        if new:
            self._client.log_batch(self._run, [Metric(name, value, time, row.iteration) for name, value in new.items()])
        self._step = row.iteration

    def flush(self) -> dict[str, Any]:
        return {"run": self._run, "step": self._step}

    def close(self) -> None:
        pass
