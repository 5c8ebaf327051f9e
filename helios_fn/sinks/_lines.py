"""What the logs of lines share: one row, one line, and a cut at the mark."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import ClassVar

from ..types import Json, Row, RunInfo
from ._append import AppendFile, cut, explained, fingerprint, logger, make_folder, set_aside
from .names import check_name, locate


class LineLog:
    """A text file with one line per row. Implementations say what the line is.

    The mark is ``{"offset": n, "first": checksum}``: the size of the file in bytes, and a checksum of its
    first line, which tells when another run was given the same path in the meantime.
    """

    suffix: ClassVar[str]
    telling: ClassVar[int] = 1
    """The number of first lines, written at once, that tell the files of two runs apart."""

    def __init__(self, path: str | PathLike[str] | None, name: str) -> None:
        self.name = check_name(name)
        self.path = None if path is None else Path(path)
        self.went_on = True  # with the rows that the mark stands for
        self._file: AppendFile | None = None

    def encode(self, row: Row) -> str:
        """The line of a row, without its end."""
        raise NotImplementedError

    def opened(self, path: Path) -> None:
        """Called when the file is open, which holds what it goes on from."""

    def open(self, info: RunInfo, mark: Json) -> None:
        """Open the file, cut back to ``mark``; opening again cuts again.

        A file of other rows is set aside, which is any at a fresh start (``mark`` is ``None``).

        Raises:
            OSError: the file cannot be written.
            ValueError: there is no path, or the mark is not one of this kind of sink.
        """
        self.close()
        offset, first = self._parsed(mark)
        path = locate(self.path, info, self.name, self.name + self.suffix)
        with explained(self.name, path):
            make_folder(path.parent)
            filled = path.is_file() and path.stat().st_size > 0
            another = filled and offset is not None and offset > 0 and fingerprint(path, self.telling) != first
            self.went_on = not another
            if another:
                logger.warning("log %s holds rows of another run: give each run a path of its own", path)
            if filled and (offset is None or another):
                set_aside(path, (info.superseded or path.parent) / path.name)
            elif offset is not None and not cut(path, offset, info.superseded):
                self.went_on = offset == 0
                if path.is_file():
                    # Shortened by hand, perhaps within a line: the next row must not continue it.
                    cut(path, path.read_bytes().rfind(b"\n") + 1, info.superseded)
            self._file = AppendFile(path)
        self.opened(path)

    def write(self, row: Row) -> None:
        """Append the row's line; other processes see it at once."""
        self._opened().write((self.encode(row) + "\n").encode("utf-8", "backslashreplace"))

    def flush(self) -> Json:
        """Make the lines durable and return the mark."""
        file = self._opened()
        return {"offset": file.flush(), "first": file.fingerprint(self.telling)}

    def close(self) -> None:
        """Flush and close. Closing twice, or before opening, is allowed."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _opened(self) -> AppendFile:
        if self._file is None:
            raise ValueError(f"sink {self.name!r} is not open: call open(info, mark) first")
        return self._file

    def _parsed(self, mark: Json) -> tuple[int | None, int]:
        if mark is None:
            return None, 0
        fields = mark if isinstance(mark, dict) else {}
        offset, first = fields.get("offset"), fields.get("first")
        if type(offset) is not int or type(first) is not int or offset < 0:
            raise ValueError(
                f"the checkpoint's mark of sink {self.name!r} is {mark!r}, not one that {type(self).__name__} made: "
                "was another kind of sink given this name?"
            )
        return offset, first
