"""Rows as tables of comma-separated values, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import get_args

from ..types import Json, Row, RowKind, RunInfo
from ._append import check_writable, explained, make_folder
from ._lines import LineLog
from .names import check_name, locate

_KINDS: tuple[RowKind, ...] = get_args(RowKind)
_POSITION = ("iteration", "micro_step", "epoch", "time")


class CSV:
    """A table per kind of row, ``train.csv`` and ``validation.csv``; by default in the log folder's ``csv``.

    The columns are ``iteration``, ``micro_step``, ``epoch``, ``time``, then the metrics by their names, then what was
    observed as ``observed/<name>``. They are fixed by the first row: what a later row lacks is left empty, and an
    observation that it has in addition is left out. A metric that is called like one of the first four is
    ``metrics/<name>``. Floats are written by ``repr`` and come back bit for bit; quoting is that of
    [RFC 4180](https://www.rfc-editor.org/rfc/rfc4180). A table begins with its first row.

    The mark is ``{"tables": {"train": mark, ...}}``, with that of a log of lines for each table there is.

    Args:
        path: the folder; ``None`` for ``<name>`` in the log folder.
        name: tells the sinks of a run apart.
    """

    def __init__(self, path: str | PathLike[str] | None = None, *, name: str = "csv") -> None:
        self.name = check_name(name)
        self.path = None if path is None else Path(path)
        self._tables: dict[RowKind, Table] = {}
        self._place: tuple[RunInfo, Path, Json] | None = None

    def open(self, info: RunInfo, mark: Json) -> None:
        """Open the tables, cut back to ``mark``; opening again cuts again.

        Tables of other rows are set aside, as all are at a fresh start (``mark`` is ``None``).

        Raises:
            OSError: a file cannot be written.
            ValueError: there is no path, or the mark is not one of this kind of sink.
        """
        self.close()
        marks = self._parsed(mark)
        folder = locate(self.path, info, self.name, self.name)
        with explained(self.name, folder):
            make_folder(folder)
            check_writable(folder)
        for kind, known in marks.items():
            self._begin(kind, info, folder, known)
        # A mark that does not know a table is from before its first row, if the table is of this run at all.
        ours = mark is not None and all(table.went_on for table in self._tables.values())
        self._place = (info, folder, {"offset": 0, "first": 0} if ours else None)
        for kind in _KINDS:
            if kind not in marks and (folder / f"{kind}.csv").exists():
                self._begin(kind, *self._place)

    def write(self, row: Row) -> None:
        """Append the row to its table; other processes see it at once."""
        (self._tables.get(row.kind) or self._begin(row.kind, *self._opened())).write(row)

    def flush(self) -> Json:
        """Make the rows durable and return the mark."""
        self._opened()
        return {"tables": {kind: self._tables[kind].flush() for kind in _KINDS if kind in self._tables}}

    def close(self) -> None:
        """Flush and close. Closing twice, or before opening, is allowed."""
        self._place = None
        while self._tables:
            self._tables.popitem()[1].close()

    def _opened(self) -> tuple[RunInfo, Path, Json]:
        if self._place is None:
            raise ValueError(f"sink {self.name!r} is not open: call open(info, mark) first")
        return self._place

    def _begin(self, kind: RowKind, info: RunInfo, folder: Path, mark: Json) -> Table:
        table = Table(folder / f"{kind}.csv", self.name)
        table.open(info, mark)
        self._tables[kind] = table
        return table

    def _parsed(self, mark: Json) -> Mapping[RowKind, Json]:
        if mark is None:
            return {}
        tables = mark.get("tables") if isinstance(mark, dict) else None
        if not isinstance(tables, dict) or not set(tables) <= set(_KINDS):
            raise ValueError(
                f"the checkpoint's mark of sink {self.name!r} is {mark!r}, not one that CSV made: "
                "was another kind of sink given this name?"
            )
        return {kind: tables[kind] for kind in _KINDS if kind in tables}


class Table(LineLog):
    """One file, whose first record are the names of the columns."""

    suffix = ".csv"
    telling = 2  # the names of two runs may be the same; a row has a time

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._columns: list[str] = []

    def opened(self, path: Path) -> None:
        """Read the columns of a table that goes on."""
        with open(path, encoding="utf-8", newline="") as stream:
            self._columns = next(csv.reader(stream), [])

    def encode(self, row: Row) -> str:
        """The row, after the names of the columns where it is the first."""
        cells = dict(_cells(row))
        head = [] if self._columns else [list(cells)]
        self._columns = self._columns or list(cells)
        out = io.StringIO()
        csv.writer(out).writerows([*head, [cells.get(column, "") for column in self._columns]])
        return out.getvalue().removesuffix("\n")  # which every line gets


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    for field in _POSITION:
        yield field, repr(getattr(row, field))
    for name, value in row.metrics.items():
        yield _spelled(f"metrics/{name}" if name in _POSITION else name), repr(float(value))
    for name, value in row.observed.items():
        yield _spelled(f"observed/{name}"), repr(float(value))


def _spelled(name: str) -> str:
    """A name as it comes back from the file, which can hold no lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()
