"""Rows on Weights & Biases (pip install wandb): the protocol `hf.Sink` with a service that cannot be cut freely.

A restart after a crash needs no cut. The run on the service may hold rows beyond the mark, but a resume is exact, so
the same rows come again, and the service ignores steps that it has passed (with a warning). Not so when a run goes back
and then takes another course: a rollback, or an older checkpoint resumed on purpose. Then the run is rewound
(``resume_from``), which W&B offers as a preview only, on request, and archives the old course.

What the client had not sent when the machine died is missing for good: `flush` cannot wait for the service, so keep
`hf.sinks.JsonLines` beside this sink. What was observed is shown too; after a crash it is that of the first time.
"""

from __future__ import annotations

from typing import Any

import wandb

import helios_fn as hf


class WeightsAndBiases:
    """Logs each row at its iteration as ``train/...``, ``validation/...`` and ``observed/...``."""

    def __init__(self, project: str, *, config: dict[str, Any] | None = None, name: str = "wandb") -> None:
        self.name, self._project, self._config = name, project, config
        self._run: Any = None
        self._step = -1

    def open(self, info: hf.RunInfo, mark: Any) -> None:
        self.close()
        common = {"project": self._project, "config": self._config}
        if mark is None:
            self._run = wandb.init(name=info.name, **common)
        elif mark["step"] >= 0 and (info.superseded is not None or self._step > mark["step"]):
            self._run = wandb.init(resume_from=f"{mark['id']}?_step={mark['step']}", **common)
        else:
            self._run = wandb.init(id=mark["id"], resume="must", **common)
        self._step = -1 if mark is None else mark["step"]

    def write(self, row: hf.Row) -> None:
        values = {f"{row.kind}/{name}": value for name, value in row.metrics.items()}
        values |= {f"observed/{name}": value for name, value in row.observed.items()}
        self._run.log(values, step=row.iteration)
        self._step = row.iteration

    def flush(self) -> dict[str, Any]:
        return {"id": self._run.id, "step": self._step}

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
