"""The protocol of one leg: a process that starts or resumes the job, and is killed or ends.

An adapter is a function ``train(leg) -> Final``. It passes every micro-batch that reaches its training step to
``leg.take``, which writes it down, or kills the process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .job import Final, digest, digest_of


class Micro(NamedTuple):
    """A micro-batch as it reached a training step: the numbers of its samples, and the digest of its bytes."""

    ids: tuple[int, ...]
    bytes: str


class Record(NamedTuple):
    """What is known of a leg afterwards.

    Attributes:
        micros: what reached the training step, in order.
        final: for parameters, buffers and moments, their digest; empty where the leg did not get to the end.
        error: why not, where nobody killed it.
    """

    micros: list[Micro]
    final: dict[str, str]
    error: str = ""


class Leg:
    """One leg's arguments and its trace.

    Args:
        root: the folder for checkpoints. It exists; a leg that finds some in it resumes.
        trace: the file for the trace.
        workers: of the data loader.
        kill_after: the process kills itself with SIGKILL when this many micro-batches have been trained on and saved
            where that was due, and the next one arrives; ``None`` leaves it alone.
    """

    def __init__(self, root: Path, trace: Path, workers: int, kill_after: int | None = None) -> None:
        self.root, self.workers = root, workers
        self._trace, self._kill_after, self._taken = trace, kill_after, 0

    def take(self, ids: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        """Note a micro-batch, or be killed instead."""
        if self._taken == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self._taken += 1
        self._write({"ids": ids.tolist(), "bytes": digest(x, y)})

    def run(self, train: Train) -> None:
        """Train, and note the outcome."""
        try:
            final = train(self)
        except Exception as error:
            self._write({"error": _in_words(error)})
        else:
            self._write({"final": {name: digest_of(tensors) for name, tensors in final.items()}})

    def _write(self, line: dict[str, Any]) -> None:
        with self._trace.open("a") as file:  # closed, so that it is with the system before a kill
            file.write(json.dumps(line) + "\n")


Train = Callable[[Leg], Final]


def _in_words(error: BaseException) -> str:
    said = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    return said if error.__context__ is None else f"{said} (after {_in_words(error.__context__)})"


def read(trace: Path) -> Record:
    """What a leg has written down."""
    micros: list[Micro] = []
    final: dict[str, str] = {}
    error = ""
    for line in trace.read_text().splitlines() if trace.exists() else []:
        entry = json.loads(line)
        if "ids" in entry:
            micros.append(Micro(tuple(entry["ids"]), entry["bytes"]))
        final = entry.get("final", final)
        error = entry.get("error", error)
    return Record(micros, final, error)
