"""What no state can tell, agreed by all processes: whether a signal has come, and whether the time is over.

A process alone asks itself. Several exchange a word: each begins to send its own after one iteration and reads the
common one after the next, so none waits for another, and all stop after the same iteration.

How often is agreed in the word, too: rank 0 measures how long iterations take and says how many to leave out, so that
the exchange costs nearly nothing for short iterations and comes after every long one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import torch

from ..distributed import World
from .signals import StopSignal
from .timer import Timer

PAUSE = 0.1
"""Seconds between two exchanges, about: how long a signal may wait beside the iterations themselves."""

_MOST_LEFT_OUT = 10_000


class Agreement:
    """The common answer of all processes of a run to: shall we stop?

    Args:
        world: the processes.
        stop: this process's own signals.
        timer: this process's own clock.

    Attributes:
        received: the signal on which all processes agree, if any. Of several different ones, one.
        is_over: whether all agree that the time is over.
    """

    def __init__(self, world: World, stop: StopSignal, timer: Timer) -> None:
        self._world, self._stop, self._timer = world, stop, timer
        self._alone = world.size == 1
        self._received: signal.Signals | None = None
        self._is_over = False
        self._word = torch.zeros(3, dtype=torch.int64)
        self._wait: Callable[[], None] | None = None
        self._left_out = 0
        self._since = time.monotonic()
        self._iterations = 0

    @property
    def received(self) -> signal.Signals | None:  # noqa: D102 (see the class)
        return self._stop.received if self._alone else self._received

    @property
    def is_over(self) -> bool:  # noqa: D102
        return self._timer.is_over() if self._alone else self._is_over

    def asked_to_stop(self) -> bool:
        """Whether there is any such reason; to be called by all processes after each iteration."""
        if self._alone:
            return self._stop.received is not None or self._timer.is_over()
        self._iterations += 1
        if self._wait is not None:
            self._read()
        if self._left_out > 0:
            self._left_out -= 1
        else:
            self._begin()
        return self._received is not None or self._is_over

    def end(self) -> None:
        """Wait for an exchange that is on its way, before the processes part."""
        if self._wait is not None:
            self._read()

    def _begin(self) -> None:
        received = self._stop.received
        leave_out = 0
        if self._world.is_main:
            now = time.monotonic()
            each = max((now - self._since) / self._iterations, 1e-6)
            leave_out = min(int(PAUSE / each), _MOST_LEFT_OUT)
            self._since, self._iterations = now, 0
        self._word = torch.tensor([0 if received is None else int(received), int(self._timer.is_over()), leave_out])
        self._wait = self._world.start_max_(self._word)

    def _read(self) -> None:
        assert self._wait is not None
        self._wait()
        self._wait = None
        number, over, self._left_out = self._word.tolist()
        self._received = signal.Signals(number) if number else None
        self._is_over = bool(over)
