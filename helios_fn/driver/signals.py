"""Signals as a flag: the first SIGTERM or SIGINT asks the run to stop at the next boundary, a second one aborts."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

HANDLED = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A context in which the first signal only sets `received`.

    Python runs signal handlers in the main thread; elsewhere the context does nothing and signals
    keep the meaning that the main thread gives them.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # A handler that was not installed from Python reads as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            return
        self.__exit__()
        signal.raise_signal(number)
