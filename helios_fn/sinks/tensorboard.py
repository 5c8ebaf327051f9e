"""Rows as TensorBoard scalars."""

from __future__ import annotations

import re
import time
from os import PathLike
from pathlib import Path
from typing import Any

from ..types import Json, Row, RunInfo
from ._append import AppendFile, cut, explained, make_folder, set_aside, sync_folder
from ._tfrecord import frame
from .names import check_name, locate

# TensorBoard reads every file with "tfevents" in its name, in the order of the names. The stamp is
# ours to compare; files of other writers in the same folder do not match and are left alone.
_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.helios_fn")


class TensorBoard:
    """Scalars ``train/<metric>`` and ``validation/<metric>`` over iterations, as TensorBoard event files.

    By default in the folder ``tensorboard`` of the run's log folder. Each start writes a new file, and a
    resume cuts the older ones at its mark, so the files together hold each row exactly once; a TensorBoard
    that is watching is told to drop what it has seen beyond the mark (the effect of ``purge_step`` in
    ``torch.utils.tensorboard``). Values are float32, as TensorBoard's are; `JsonLines` keeps them exactly.

    Events are written by the caller, without a thread: a row survives the process as soon as it is written.
    The mark is ``{"files": {name: size in bytes}}``.

    Args:
        path: the folder; ``None`` for ``<name>`` in the log folder.
        name: tells the sinks of a run apart.
    """

    def __init__(self, path: str | PathLike[str] | None = None, *, name: str = "tensorboard") -> None:
        self.name = check_name(name)
        self.path = None if path is None else Path(path)
        self._file: AppendFile | None = None
        self._file_name = ""
        self._earlier: dict[str, int] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._event: Any = None

    def open(self, info: RunInfo, mark: Json) -> None:
        """Cut the event files back to ``mark`` and begin a new one; opening again cuts again.

        At a fresh start (``mark`` is ``None``) event files of an earlier run are set aside.

        Raises:
            ImportError: the package ``tensorboard`` is not installed.
            OSError: the folder cannot be written.
            ValueError: there is no path, or the mark is not one of this kind of sink.
        """
        self.close()
        self._event = _event_class()
        self._earlier = _sizes(mark, self.name)
        folder = locate(self.path, info, self.name, self.name)
        with explained(self.name, folder):
            make_folder(folder)
            # A new name lies behind all that a watching TensorBoard may have seen, whatever the clock says.
            stamp = max([int(time.time()), *(_stamp(name) + 1 for name in _ours(folder))])
            _restore(folder, self._earlier, info.superseded, fresh=mark is None)
            self._file_name = f"events.out.tfevents.{stamp:010}.helios_fn"
            self._file = AppendFile(folder / self._file_name)
            self._write_head(None if mark is None else info.start_iteration + 1)

    def write(self, row: Row) -> None:
        """Append the row's scalars; a watching TensorBoard sees them at once."""
        event = self._event(wall_time=row.time, step=row.iteration)
        add = event.summary.value.add
        for metric, value in row.metrics.items():
            add(tag=self._tag(row.kind, metric), simple_value=value)
        self._opened().write(frame(event.SerializeToString()))

    def flush(self) -> Json:
        """Make the events durable and return the mark."""
        return {"files": {**self._earlier, self._file_name: self._opened().flush()}}

    def close(self) -> None:
        """Flush and close. Closing twice, or before opening, is allowed."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _opened(self) -> AppendFile:
        if self._file is None:
            raise ValueError(f"sink {self.name!r} is not open: call open(info, mark) first")
        return self._file

    def _write_head(self, purge_step: int | None) -> None:
        """The file's version and, at a resume, the step from which earlier files no longer count."""
        head = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._opened().write(frame(head.SerializeToString()))
        if purge_step is not None:
            start = self._event(wall_time=time.time(), step=purge_step)
            start.session_log.status = start.session_log.START
            self._opened().write(frame(start.SerializeToString()))

    def _tag(self, kind: str, metric: str) -> str:
        tag = self._tags.get((kind, metric))
        if tag is None:  # protocol buffers refuse lone surrogates
            tag = f"{kind}/{metric}".encode("utf-8", "backslashreplace").decode()
            self._tags[kind, metric] = tag
        return tag


def _event_class() -> Any:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise ImportError("the TensorBoard sink needs a package that is missing: pip install tensorboard") from error
    return Event


def _sizes(mark: Json, sink: str) -> dict[str, int]:
    """The files of a mark and their sizes. Names are matched, for they decide what is cut."""
    if mark is None:
        return {}
    files = mark.get("files") if isinstance(mark, dict) else None
    sizes: dict[str, int] = {}
    for name, size in files.items() if isinstance(files, dict) else [("", None)]:
        if not _FILE.fullmatch(name) or type(size) is not int or size < 0:
            raise ValueError(
                f"the checkpoint's mark of sink {sink!r} is {mark!r}, not one that TensorBoard made: "
                "was another kind of sink given this name?"
            )
        sizes[name] = size
    return sizes


def _restore(folder: Path, sizes: dict[str, int], superseded: Path | None, *, fresh: bool) -> None:
    """Leave exactly the events of ``sizes`` in ``folder``. Idempotent: a crash in between does no harm."""
    if fresh and superseded is None:
        # Out of this folder, or TensorBoard would show two runs as one.
        if _ours(folder):
            set_aside(folder, None)
            make_folder(folder)
        return
    kept = superseded and superseded / folder.name
    for name in _ours(folder):
        if name not in sizes and kept is not None:
            set_aside(folder / name, kept)
        elif name not in sizes:
            (folder / name).unlink()
    sync_folder(folder)
    for name, size in sizes.items():
        cut(folder / name, size, kept)


def _ours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if _FILE.fullmatch(path.name))


def _stamp(name: str) -> int:
    return int(name.split(".")[3])
