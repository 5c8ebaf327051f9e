"""What the processes that get killed run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import helios_fn as hf
from helios_fn.errors import CheckpointError
from helios_fn.testing.trace import logged_rows

from ..jobs import Case, build


class Tell(hf.Observer):
    """Tells the parent where the run is, so that it can choose the instant of the kill."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_start(self, info: hf.RunInfo, state: hf.TrainState) -> None:
        self.pipe.send(("start", info.start_iteration))

    def on_iteration(self, state: hf.TrainState) -> None:
        self.pipe.send(("iteration", state.counters.iteration))

    def on_validation(self, state: hf.TrainState) -> None:
        self.pipe.send(("validated", state.counters.iteration))

    def on_checkpoint(self, path: Path, state: hf.TrainState) -> None:
        self.pipe.send(("saved", state.counters.iteration))


def train(case: Case, root: str, workers: int, ambient: int, pipe: Connection) -> None:
    """Run or resume a case in ``root``; the last message is ``("end", outcome)``, or the error's type and text."""
    os.setpgrp()  # so that workers that outlive this process can be found
    torch.set_num_threads(1)
    # As in a program that was started by hand: its workers are its own forks, and inherit what it has open.
    multiprocessing.set_start_method("fork", force=True)
    torch.manual_seed(ambient)
    job = build(case, workers)
    cfg = dataclasses.replace(job.cfg, root=root)
    sinks = [hf.sinks.JsonLines(name="law-trace"), hf.sinks.TextLog()]
    try:
        result = hf.run(job.step, job.state, job.loader(), cfg, observers=[Tell(pipe)], sinks=sinks, **job.keywords)
    except CheckpointError as error:
        pipe.send((type(error).__name__, str(error)))
        return
    rows = [repr(row) for row in logged_rows(Path(root))]
    pipe.send(("end", (hf.tree.digest(result.state), result.reason.name, rows)))
