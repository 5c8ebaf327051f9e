"""Progress on the screen."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

from ..types import Counters, Cursor, Observer, Reason, Row, RunInfo
from ._bars import ASCII, BLOCKS, Snapshot, duration, remaining, render, render_plain

_MEMORY = 20.0  # seconds over which the speed is averaged
_MOST_UNLOOKED = 32  # iterations between two looks at the clock, at most


class Progress(Observer):
    """Shows how far a run is, how fast, whether data holds it up, and what it logged last.

    It writes to a screen, never to a log. On a terminal, bars that stay in place: two in the epoch unit
    (epochs, and iterations inside the epoch), one in the iteration unit, and one during a validation that
    reports its batches. What the program prints in the meantime appears above them. Elsewhere, such as in a
    pipe, a line now and then. A stream that fails (a closed terminal) silences the progress and does not
    touch the training.

    Args:
        stream: where to; ``None`` for ``sys.stderr`` as it is when the run starts.
        interval: seconds between two drawings on a terminal.
        plain_interval: seconds between two lines elsewhere; the last line always comes.
    """

    keeps_states = False

    def __init__(self, stream: TextIO | None = None, *, interval: float = 0.1, plain_interval: float = 5.0) -> None:
        for name, value in (("interval", interval), ("plain_interval", plain_interval)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value!r}")
        self._given = stream
        self._interval = interval
        self._plain_interval = plain_interval
        self._screen: _Screen | _Lines | None = None

    def on_start(self, info: RunInfo, state: Any) -> None:
        """Show where the run starts, in words where it goes on."""
        self._info = info
        self._counters = Counters(info.start_iteration)
        self._cursor = Cursor(0, info.start_epoch, info.start_batch)
        self._metrics: dict[str, Mapping[str, float]] = {"train": {}, "validation": {}}
        self._observed: Mapping[str, float] = {}
        self._validating: tuple[int, int | None] | None = None
        self._calls = self._due = 0
        self._chunk = 1
        self._meter, self._metered = Meter(), info.start_iteration
        self._began = self._looked = self._shown = time.perf_counter()
        stream: TextIO | None = self._given if self._given is not None else sys.stderr  # None without a console
        self._screen = _Screen(stream) if _is_terminal(stream) else _Lines(stream)
        self._period = self._interval if isinstance(self._screen, _Screen) else self._plain_interval
        if info.start_iteration > 0 and remaining(self._snapshot()) != 0:
            place = f"iteration {info.start_iteration} (epoch {info.start_epoch}, batch {info.start_batch})"
            self._screen.say(f"{info.name}: going on from {place}")
        if isinstance(self._screen, _Screen):
            self._show(self._began)

    def on_iteration(self, state: Any) -> None:
        """Count; a fraction of a microsecond unless something is due."""
        # Not the state itself: that would keep a whole model alive.
        self._cursor = state.cursor
        self._counters = state.counters
        self._calls += 1
        if self._calls >= self._due:
            self._look()

    def on_row(self, row: Row) -> None:
        """Remember the latest metrics of each kind, and what was observed."""
        self._metrics[row.kind] = row.metrics
        if row.observed:
            self._observed = row.observed

    def on_validation_batch(self, done: int, total: int | None) -> None:
        """Move the validation's bar."""
        self._validating = (done, total)
        self._look()

    def on_validation(self, state: Any) -> None:
        """Take the validation's bar away."""
        if self._validating is not None:
            self._validating = None
            if isinstance(self._screen, _Screen):
                self._show(time.perf_counter())

    def on_end(self, state: Any, reason: Reason | None) -> None:
        """Leave the final lines, and why the run ended, on the screen."""
        if self._screen is None:
            return
        if state is not None:
            self._cursor, self._counters = state.cursor, state.counters
        self._validating = None
        now = time.perf_counter()
        self._show(now, last=True)
        if reason is not None:
            where = f"at iteration {self._counters.iteration}"
            if reason.finished and not self._calls:
                ended = f"was finished already {where}"
            else:
                ended = f"ended {where} after {duration(now - self._began)}"
            self._screen.say(f"{self._info.name} {ended}: {reason.value}")
        self._screen = None

    def _look(self) -> None:
        """Look at the clock, show what is due, and choose how many iterations may pass until the next look."""
        now = time.perf_counter()
        passed, self._looked = now - self._looked, now
        if passed * 8 < self._period:
            self._chunk = min(self._chunk * 2, _MOST_UNLOOKED)
        elif passed * 4 > self._period:
            self._chunk = 1
        self._due = self._calls + self._chunk
        if now - self._shown >= self._period:
            self._show(now)

    def _show(self, now: float, *, last: bool = False) -> None:
        if self._screen is None:
            return
        iteration = self._counters.iteration
        self._meter = self._meter.update(iteration - self._metered, now - self._shown)
        self._metered, self._shown = iteration, now
        self._screen.show(self._snapshot(), last)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self._info,
            self._counters.iteration,
            self._cursor.epoch,
            self._cursor.batch,
            self._meter.rate,
            self._metrics["train"],
            self._metrics["validation"],
            self._validating,
            self._observed,
        )


class Meter(NamedTuple):
    """A speed: things done over seconds, both forgotten at the same rate."""

    done: float = 0.0
    seconds: float = 0.0

    def update(self, done: float, seconds: float) -> Meter:
        """After ``done`` more in ``seconds``. Counting backwards (a rollback) starts afresh."""
        if done < 0:
            return Meter()
        keep = math.exp(-seconds / _MEMORY)
        return Meter(self.done * keep + done, self.seconds * keep + seconds)

    @property
    def rate(self) -> float:
        """Things per second, 0 while unknown."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class _Stream:
    """A stream whose failure is ours to bear: it falls silent."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def emit(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            self.stream.flush()
        except (OSError, ValueError):  # hung up; closed
            self.stream = None

    def say(self, text: str) -> None:
        self.emit(f"{text}\n")


class _Lines(_Stream):
    """One line after another."""

    def show(self, snapshot: Snapshot, last: bool) -> None:
        self.emit(f"{render_plain(snapshot)}\n")


class _Screen(_Stream):
    """Lines that are drawn over again.

    The cursor rests, visible, on an empty line above them: what others print goes there and pushes
    the lines down, instead of being mixed up with them. A killed process needs no tidying.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        try:
            (BLOCKS.full + BLOCKS.empty).encode(self.encoding)
            self._glyphs = BLOCKS
        except UnicodeEncodeError:
            self._glyphs = ASCII

    def show(self, snapshot: Snapshot, last: bool) -> None:
        columns, rows = self._size()
        lines = render(columns - 1, snapshot, self._glyphs)[: max(1, rows - 2)]
        # Without wrapping, for a wrapped line would need two steps up; \r\n also where the terminal is raw.
        drawn = "\x1b[?7l" + "\x1b[K\r\n".join(lines if last else ["", *lines]) + "\x1b[J\x1b[?7h"
        self.emit("\r" + drawn + ("\r\n" if last else f"\r\x1b[{len(lines)}A"))

    def _size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not a file; closed; silent
            columns, rows = os.get_terminal_size(self.stream.fileno())  # type: ignore[union-attr]
            if columns > 0 and rows > 0:
                return columns, rows
        return 80, 24


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (ValueError, AttributeError):  # closed; not quite a stream
        return False
