"""Rows as text, for people to read."""

from __future__ import annotations

import time
from os import PathLike

from ..types import Row
from ._lines import LineLog
from .names import loss_first


class TextLog(LineLog):
    """A log of one aligned line of text per row; by default ``run.log`` in the run's log folder.

    Besides the time of day in its first column, the file depends on the rows only: it says nothing of
    starts and resumes. Values are rounded to six digits; `JsonLines` keeps them exactly.

    Args:
        path: the file; ``None`` for ``<name>.log`` in the log folder.
        name: tells the sinks of a run apart.
    """

    suffix = ".log"

    def __init__(self, path: str | PathLike[str] | None = None, *, name: str = "run") -> None:
        super().__init__(path, name)

    def encode(self, row: Row) -> str:
        """The row as one line: local time, kind, iteration, epoch and metrics, the loss first."""
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.time))
        # split() knows every character that any reader takes for the end of a line.
        metrics = "".join(f"  {' '.join(name.split())} {value:.6g}" for name, value in loss_first(row.metrics))
        return f"{clock}  {row.kind:<10}  iteration {row.iteration:<8} epoch {row.epoch:<4}{metrics}"
