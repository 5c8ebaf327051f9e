"""Rows as JSON lines, for programs to read."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..types import Fingerprint, Row
from ._lines import LineLog

_quote = functools.lru_cache(maxsize=256)(json.dumps)  # a run has few names and writes them often


class JsonLines(LineLog):
    """A log of one JSON object per row; by default ``metrics.jsonl`` in the run's log folder.

    The object has the fields of `Row`, with ``metrics`` and, where there is any, ``observed`` as objects
    in it. It is strict ASCII JSON that every parser reads: finite floats are written by ``repr`` and come
    back bit for bit, the others, which JSON lacks, are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Args:
        path: the file; ``None`` for ``<name>.jsonl`` in the log folder.
        name: tells the sinks of a run apart.
    """

    suffix = ".jsonl"

    def __init__(self, path: str | PathLike[str] | None = None, *, name: str = "metrics") -> None:
        super().__init__(path, name)

    def encode(self, row: Row) -> str:
        """The row as one JSON object."""
        observed = f',"observed":{_object(row.observed)}' if row.observed else ""
        return (
            f'{{"kind":"{row.kind}","iteration":{row.iteration},"micro_step":{row.micro_step},"epoch":{row.epoch},'
            f'"metrics":{_object(row.metrics)},"time":{_number(row.time)}{observed}}}'
        )

    def write_fingerprint(self, found: Fingerprint) -> None:
        """Append the line of a fingerprint, which has ``state`` and ``batch`` where a row has ``metrics``."""
        fields = {"kind": found.kind, **found._asdict()}
        line = json.dumps(fields, separators=(",", ":"))
        self._opened().write((line + "\n").encode("utf-8", "backslashreplace"))


def read_rows(path: str | PathLike[str]) -> list[Row]:
    """The rows of a file written by `JsonLines`, without the fingerprints among them.

    A last line without its end is being written, or was torn by a crash, and is left out.

    Raises:
        ValueError: another line is not a row.
    """
    return [row for row in read_log(path) if isinstance(row, Row)]


def read_log(path: str | PathLike[str]) -> list[Row | Fingerprint]:
    """All lines of a file written by `JsonLines`, in order: rows and fingerprints. See `read_rows`."""
    rows: list[Row | Fingerprint] = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(_to_row(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a row of a log: {line[:80]!r}") from error
    return rows


def _object(values: Mapping[str, float]) -> str:
    return "{" + ",".join([f"{_quote(name)}:{_number(value)}" for name, value in values.items()]) + "}"


def _number(value: float) -> str:
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'


def _to_row(fields: Mapping[str, Any]) -> Row | Fingerprint:
    if fields["kind"] == "fingerprint":
        return Fingerprint(**{name: fields[name] for name in Fingerprint._fields})
    # float() reads the three strings of the class docstring as well.
    metrics, observed = (
        {name: float(value) for name, value in part.items()} for part in (fields["metrics"], fields.get("observed", {}))
    )
    rest = {field: fields[field] for field in ("kind", "iteration", "micro_step", "epoch")}
    return Row(**rest, metrics=metrics, time=float(fields["time"]), observed=observed)
