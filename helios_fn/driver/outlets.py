"""Where a run's values and events go: sinks and observers, behind one small front."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import random, schedule
from ..config import Every
from ..sinks import check_sinks
from ..state import TrainState
from ..types import Fingerprint, Json, Observer, Row, RunInfo, Sink
from .guard import check_unwritten, versions

_LOGGER = logging.getLogger("helios_fn")
_EVENTS = (
    "on_start",
    "on_iteration",
    "on_row",
    "on_validation_batch",
    "on_validation",
    "on_checkpoint",
    "on_end",
)
_FINGERPRINT = "write_fingerprint"


class Outlets:
    """All sinks and observers of a run. Where this process is not the one that ``writes``, only the observers.

    Only methods that an observer really defines are called, so an event nobody reads costs nothing.
    Rows reach the sinks when the iteration they belong to is complete: if validation or an observer
    fails before, the iteration will be done again, and its rows written then.

    Raises:
        ValueError: two sinks have the same name or path.
        TypeError: something is no sink, or an observer defines none of the methods of `Observer`.
    """

    def __init__(self, sinks: Iterable[Sink], observers: Iterable[Any], *, writes: bool = True) -> None:
        if not isinstance(sinks, Iterable) or not isinstance(observers, Iterable):
            raise TypeError("sinks and observers are lists: write sinks=[hf.sinks.JsonLines()]")
        self._sinks = list(sinks)
        check_sinks(self._sinks)
        looking = [(sink, every) for sink in self._sinks if (every := getattr(sink, "look_every", None)) is not None]
        # The same in all processes, so that they do the same things after the same iterations.
        self.cadences = [every for _, every in looking]
        # Whether this process writes or not: taking a fingerprint is done together. Rank 0's answer is that of all.
        self.keeps_fingerprints = any(callable(getattr(sink, _FINGERPRINT, None)) for sink in self._sinks)
        if not writes:
            self._sinks.clear()
            looking.clear()
        self._looking: list[tuple[Any, Every]] = looking
        self._handlers: dict[str, list[Callable[..., None]]] = {event: [] for event in _EVENTS}
        for observer in observers:
            self._subscribe(observer)
        self.on_iteration = self._handlers["on_iteration"]
        self._info: RunInfo | None = None
        self._open: list[Sink] = []
        self._pending: list[Row | Fingerprint] = []
        self._marks: dict[str, Json] = {}
        self.broken = False

    def _subscribe(self, observer: Any) -> None:
        if isinstance(observer, type):
            raise TypeError(
                f"observers takes instances, got the class {observer.__name__}: write {observer.__name__}()"
            )
        found = False
        for event in _EVENTS:
            handler = getattr(observer, event, None)
            inherited = getattr(handler, "__func__", handler) is getattr(Observer, event)
            if handler is not None and not inherited:
                self._handlers[event].append(handler)
                found = True
        if not found:
            raise TypeError(f"{type(observer).__name__} observes nothing: define one of {', '.join(_EVENTS)}")

    @property
    def shows_states(self) -> bool:
        """Whether an observer that might keep a state is shown every one."""
        return any(getattr(getattr(each, "__self__", None), "keeps_states", True) for each in self.on_iteration)

    def emit(self, event: str, *values: Any) -> None:
        """Tell every observer that wants to know."""
        for handler in self._handlers[event]:
            handler(*values)

    def listening(self, event: str) -> bool:
        """Whether any observer wants to know."""
        return bool(self._handlers[event])

    def open(self, info: RunInfo, marks: Mapping[str, Json]) -> None:
        """Open all sinks, each cut back to the mark that a checkpoint recorded for it."""
        self._info = info
        self._marks = dict(marks)
        for sink in self._sinks:
            self._open.append(sink)
            sink.open(info, marks.get(sink.name))

    def cut(self, marks: Mapping[str, Json]) -> None:
        """Cut all open sinks back to ``marks``: what they hold beyond will be written again."""
        assert self._info is not None
        info = self._info._replace(superseded=None)
        self._pending.clear()
        self.close()
        self.open(info, marks)

    def write(self, row: Row) -> None:
        """Show a row to the observers, and keep it for the sinks until `commit`."""
        self._pending.append(row)
        self.emit("on_row", row)

    def write_fingerprint(self, found: Fingerprint) -> None:
        """Keep a fingerprint, among the rows, for those sinks that take it."""
        self._pending.append(found)

    def commit(self, before: TrainState, state: TrainState) -> bool:
        """Hand the rows of a complete iteration, and its ``state`` where a look is due, to the sinks.

        Returns whether anybody has seen the state. All look before any writes: what their user's functions raise
        finds the logs as they were.

        Raises:
            PurityError: a sink has written to the state.
        """
        due = [sink for sink, every in self._looking if schedule.crossed(before, state, every)]
        seen = _looks(due, state) if due else []
        if self._pending or seen:
            self.broken = True  # some sinks may have the rows and others not, until all have
            for row in self._pending:
                for sink in self._sinks:
                    if isinstance(row, Row):
                        sink.write(row)
                    elif keep := getattr(sink, _FINGERPRINT, None):
                        keep(row)
            for write in seen:
                write()
            self._pending.clear()
            self.broken = False
        return bool(due)

    def discard(self) -> None:
        """Forget the rows of an iteration that was not completed."""
        self._pending.clear()

    def flush(self, *, lenient: bool = False) -> dict[str, Json]:
        """Make all rows durable and return the marks to record in a checkpoint.

        With ``lenient``, a sink that fails keeps its last mark: its newer rows are lost, the checkpoint is not.
        """
        for sink in self._sinks:
            try:
                self._marks[sink.name] = sink.flush()
            except Exception as error:
                if not lenient:
                    raise
                _LOGGER.warning("sink %r could not be flushed and loses its last rows: %s", sink.name, error)
        return dict(self._marks)

    def close(self) -> None:
        """Close all sinks, also when one of them fails to."""
        failures = []
        while self._open:
            try:
                self._open.pop().close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _looks(sinks: Iterable[Any], state: TrainState) -> list[Callable[[], None]]:
    """Let sinks look at a state, as if they had not; what each then wants to write."""
    before = versions(state)
    with random.preserved_globals():
        seen = [sink.look(state) for sink in sinks]
    check_unwritten("look of a sink", state, before)
    return seen
