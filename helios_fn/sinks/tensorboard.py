"""Rows, and looks at states, for TensorBoard."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from .. import tree
from ..config import Every
from ..types import Json, Row, RunInfo, Scalar
from . import _summaries as summaries
from ._append import AppendFile, check_writable, cut, explained, make_folder, set_aside, spare, sync_folder
from ._tfrecord import frame
from .names import TIME_SPLIT, check_name, locate

# TensorBoard reads every file with "tfevents" in its name, in the order of the names. The stamp is
# ours to compare; files of other writers in the same folder do not match and are left alone.
_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.helios_fn")


Look: TypeAlias = Callable[[Any], Any]
"""A function of a `TrainState`."""

_EVERY = Every(100, "iteration")


class TensorBoard:
    """Scalars ``train/<metric>`` and ``validation/<metric>`` over iterations, as TensorBoard event files.

    What a row observed is shown beside them: ``time/<part>`` in seconds since the train row before, and ``system/...``.
    At the beginning come a text ``run`` with the run's facts, ``texts`` and ``hparams`` of one's own. At the cadence
    ``every``, functions of the state give

    - ``histograms={"weights": lambda state: state.params}``: one for each leaf, ``weights/<path>``. Gradients are
      not in the state, unless the optimiser keeps them: ``hf.optim.chain(hf.optim.keep_gradients(), ...)``, and
      ``"gradients": lambda state: state.opt_state[0].grads``.
    - ``images={"samples": draw}``: uint8, or floats from 0 to 1, of shape (images, channels, height, width), put side
      by side. What a function draws from the global generators is undone; a model in it wants a key of its own.

    They run in the training thread, must not write to the state, and change no bit of the training.

    By default in the folder ``tensorboard`` of the run's log folder. The first row after each start begins a
    new file, and a resume cuts the older ones at its mark, so the files together hold each row exactly once;
    a TensorBoard that is watching is told to drop what it has seen beyond the mark (the effect of
    ``purge_step`` in ``torch.utils.tensorboard``). Values are float32, as TensorBoard's are; `JsonLines`
    keeps them exactly.

    Events are written by the caller, without a thread: a row survives the process as soon as it is written.
    The mark is ``{"files": {name: size in bytes}, "iteration": that of the last row, or -1}``.

    Args:
        path: the folder; ``None`` for ``<name>`` in the log folder.
        name: tells the sinks of a run apart.
        hparams: hyperparameters, for the tab that compares runs by them.
        texts: texts in Markdown, by name.
        histograms: ``function(state) -> tree of tensors``, by name.
        images: ``function(state) -> tensor``, by name.
        every: when to call these functions.

    Raises:
        TypeError: a hyperparameter is no number or text, a text no string, a function none, or ``every`` no `hf.Every`.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        name: str = "tensorboard",
        hparams: Mapping[str, Scalar | str] | None = None,
        texts: Mapping[str, str] | None = None,
        histograms: Mapping[str, Look] | None = None,
        images: Mapping[str, Look] | None = None,
        every: Every = _EVERY,
    ) -> None:
        self.name = check_name(name)
        self.path = None if path is None else Path(path)
        self._hparams, self._texts = dict(hparams or {}), dict(texts or {})
        self._histograms, self._images = dict(histograms or {}), dict(images or {})
        check_shown(self._hparams, self._texts, self._histograms, self._images, every)
        self.look_every = every if self._histograms or self._images else None
        self._info: RunInfo | None = None
        self._file: AppendFile | None = None
        self._next_file: Path | None = None
        self._purge_step: int | None = None
        self._earlier: dict[str, int] = {}
        self._iteration = -1
        self._forms: dict[tuple[str, ...], tuple[Any, list[Any]]] = {}
        self._event: Any = None

    def open(self, info: RunInfo, mark: Json) -> None:
        """Cut the event files back to ``mark``; opening again cuts again.

        Event files of another run are set aside: any at a fresh start (``mark`` is ``None``), and those found
        where the mark's own are gone.

        Raises:
            ImportError: the package ``tensorboard`` is not installed.
            OSError: the folder cannot be written.
            ValueError: there is no path, or the mark is not one of this kind of sink.
        """
        self.close()
        self._event, self._info = _event_class(), info
        self._earlier, self._iteration = _parse(mark, self.name)
        folder = locate(self.path, info, self.name, self.name)
        with explained(self.name, folder):
            make_folder(folder)
            # A new name lies behind all that a watching TensorBoard may have seen, whatever the clock says.
            stamp = max([int(time.time()), *(_stamp(name) + 1 for name in _ours(folder))])
            _restore(folder, self._earlier, info.superseded, fresh=mark is None)
            check_writable(folder)
        self._next_file = folder / f"events.out.tfevents.{stamp:010}.helios_fn"
        self._purge_step = None if mark is None else self._iteration + 1

    def write(self, row: Row) -> None:
        """Append the row's scalars; a watching TensorBoard sees them at once."""
        file = self._begun(row.time)
        columns = (row.kind, *row.metrics, "", *row.observed)
        event, places = self._forms.get(columns) or self._form(columns, row)
        event.wall_time, event.step = row.time, row.iteration
        for place, value in zip(places, chain(row.metrics.values(), row.observed.values()), strict=True):
            place.simple_value = value
        file.write(frame(event.SerializeToString()))
        self._iteration = row.iteration

    def look(self, state: Any) -> Callable[[], None]:
        """Take histograms and images from a state; what is returned appends them.

        Raises:
            ValueError: a function of ``images`` returned something else.
        """
        iteration, now = state.counters.iteration, time.time()
        event = self._event(wall_time=now, step=iteration)
        for name, function in self._histograms.items():
            event.summary.value.extend(summaries.histograms(name, function(state)))
        for name, function in self._images.items():
            event.summary.value.append(summaries.image(name, function(state)))
        data = frame(event.SerializeToString())

        def write() -> None:
            self._begun(now).write(data)
            self._iteration = iteration

        return write

    def flush(self) -> Json:
        """Make the events durable and return the mark."""
        path = self._opened()
        files: dict[str, Json] = {**self._earlier}
        if self._file is not None:
            files[path.name] = self._file.flush()
        return {"files": files, "iteration": self._iteration}

    def close(self) -> None:
        """Flush and close. Closing twice, or before opening, is allowed."""
        self._next_file = None
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _opened(self) -> Path:
        if self._next_file is None:
            raise ValueError(f"sink {self.name!r} is not open: call open(info, mark) first")
        return self._next_file

    def _begun(self, now: float) -> AppendFile:
        """The file of this start. It begins with its first row: a run that only looks leaves no empty file."""
        path = self._opened()
        if self._file is None:
            with explained(self.name, path.parent):
                self._file = AppendFile(path)
            self._file.write(b"".join(frame(event.SerializeToString()) for event in self._head(now)))
        return self._file

    def _head(self, now: float) -> Iterator[Any]:
        """The file's version; at a resume, the step from which earlier files no longer count; once, the run's facts."""
        yield self._event(wall_time=time.time(), file_version="brain.Event:2")
        if self._purge_step is not None:
            start = self._event(wall_time=time.time(), step=self._purge_step)
            start.session_log.status = start.session_log.START
            yield start
        if not self._earlier:
            assert self._info is not None
            facts = self._event(wall_time=now, step=0)
            add = facts.summary.value.append
            for name, content in {"run": summaries.run_as_text(self._info), **self._texts}.items():
                add(summaries.text(name, content))
            if self._hparams:
                add(summaries.hyperparameters(self._hparams, self._info.name, now))
            yield facts

    def _form(self, columns: tuple[str, ...], row: Row) -> tuple[Any, list[Any]]:
        """An event to be filled in: rows of one form come often, and making their tags takes most of the time."""
        tags = [f"{row.kind}/{metric}" for metric in row.metrics]
        tags += [f"{'time' if name in TIME_SPLIT else 'system'}/{name}" for name in row.observed]
        event = self._event()
        for tag in tags:  # protocol buffers refuse lone surrogates
            event.summary.value.add(tag=tag.encode("utf-8", "backslashreplace").decode())
        self._forms[columns] = event, list(event.summary.value)
        return self._forms[columns]


def check_shown(hparams: Any, texts: Any, histograms: Any, images: Any, every: Any) -> None:
    """Refuse what cannot be shown, before anything is trained."""
    for name, value in hparams.items():
        if not isinstance(value, bool | int | float | str):
            raise TypeError(f"hparams[{name!r}] must be a number, a bool or a text, got {value!r}: write str(...)")
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"texts[{name!r}] must be a text, got {value!r}")
    for kind, functions in (("histograms", histograms), ("images", images)):
        for name, value in functions.items():
            if not callable(value):
                raise TypeError(f"{kind}[{name!r}] must be a function of the state, got {tree.describe(value)}")
    if not isinstance(every, Every):
        raise TypeError(f"every must say of what, such as hf.Every(100, 'iteration'), got {every!r}")


def _event_class() -> Any:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise ImportError("the TensorBoard sink needs a package that is missing: pip install tensorboard") from error
    return Event


def _parse(mark: Json, sink: str) -> tuple[dict[str, int], int]:
    """The files of a mark with their sizes, and its iteration. Names are matched, for they decide what is cut."""
    if mark is None:
        return {}, -1
    fields = mark if isinstance(mark, dict) else {}
    files, iteration = fields.get("files"), fields.get("iteration")
    sizes: dict[str, int] = {}
    for name, size in files.items() if isinstance(files, dict) else ():
        if _FILE.fullmatch(name) and type(size) is int and size >= 0:
            sizes[name] = size
    if type(iteration) is not int or sizes != files:
        raise ValueError(
            f"the checkpoint's mark of sink {sink!r} is {mark!r}, not one that TensorBoard made: "
            "was another kind of sink given this name?"
        )
    return sizes, iteration


def _restore(folder: Path, sizes: dict[str, int], superseded: Path | None, *, fresh: bool) -> None:
    """Leave exactly the events of ``sizes`` in ``folder``. Idempotent: a crash in between does no harm."""
    beyond = [name for name in _ours(folder) if name not in sizes]
    kept = superseded / folder.name if superseded is not None else None
    theirs = fresh or any(not (folder / name).exists() for name in sizes)
    if kept is None and theirs and beyond:
        kept = spare(folder)  # a folder of its own, or TensorBoard would show two runs as one
    for name in beyond:
        if kept is not None:
            set_aside(folder / name, kept / name)
        else:
            (folder / name).unlink()
    sync_folder(folder)
    for name, size in sizes.items():
        cut(folder / name, size, kept)


def _ours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if _FILE.fullmatch(path.name))


def _stamp(name: str) -> int:
    return int(name.split(".")[3])
