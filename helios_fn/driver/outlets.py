"""Where a run's values and events go: sinks and observers, behind one small front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..sinks import check_sinks
from ..types import Json, Observer, Row, RunInfo, Sink

_EVENTS = (
    "on_start",
    "on_iteration",
    "on_row",
    "on_validation_batch",
    "on_validation",
    "on_checkpoint",
    "on_end",
)


class Outlets:
    """All sinks and observers of a run.

    Only methods that an observer really defines are called, so an event nobody reads costs nothing.

    Raises:
        ValueError: two sinks have the same name or path.
        TypeError: something is no sink, or an observer defines none of the methods of `Observer`.
    """

    def __init__(self, sinks: Iterable[Sink], observers: Iterable[Any]) -> None:
        self._sinks = list(sinks)
        check_sinks(self._sinks)
        self._handlers: dict[str, list[Callable[..., None]]] = {event: [] for event in _EVENTS}
        for observer in observers:
            self._subscribe(observer)
        self.on_iteration = self._handlers["on_iteration"]
        self._info: RunInfo | None = None
        self._open: list[Sink] = []

    def _subscribe(self, observer: Any) -> None:
        found = False
        for event in _EVENTS:
            handler = getattr(observer, event, None)
            inherited = getattr(type(observer), event, None) is getattr(Observer, event)
            if handler is not None and not inherited:
                self._handlers[event].append(handler)
                found = True
        if not found:
            raise TypeError(f"{type(observer).__name__} observes nothing: define one of {', '.join(_EVENTS)}")

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
        for sink in self._sinks:
            self._open.append(sink)
            sink.open(info, marks.get(sink.name))

    def cut(self, marks: Mapping[str, Json]) -> None:
        """Cut all open sinks back to ``marks``: what they hold beyond will be written again."""
        assert self._info is not None
        info = self._info._replace(superseded=None)
        self.close()
        self.open(info, marks)

    def write(self, row: Row) -> None:
        """Hand a row to all sinks, then to the observers."""
        for sink in self._sinks:
            sink.write(row)
        self.emit("on_row", row)

    def flush(self) -> dict[str, Json]:
        """Make all rows durable and return the marks to record in a checkpoint."""
        return {sink.name: sink.flush() for sink in self._sinks}

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
