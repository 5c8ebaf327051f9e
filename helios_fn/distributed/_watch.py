"""How the process that starts others waits for them, and how it ends those that do not end by themselves."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

from ._child import WHERE
from ._reports import Failure, Outcome, Ready, Returned, Whereabouts, ended, launch_failed

_LOOK = 0.1  # seconds between two looks, if nothing happens
_ANSWER = 1.0  # seconds to say where one is
_LAST = 5.0  # seconds between SIGTERM and SIGKILL


class Child:
    """One process: what it has said, and whether it still runs.

    Attributes:
        rank: its number.
        outcome: the value or the failure, as soon as it is known; the first one counts.
    """

    def __init__(self, rank: int, process: BaseProcess, connection: Connection, call: bytes) -> None:
        self.rank = rank
        self.outcome: Outcome | None = None
        self._process = process
        self._connection = connection
        self._call: bytes | None = call

    @property
    def alive(self) -> bool:
        return self._process.exitcode is None

    def sources(self) -> list[Any]:
        """What becomes readable when something happens."""
        return [each for each in (self._connection, self._process.sentinel) if not getattr(each, "closed", False)]

    def look(self) -> None:
        """Take in what it has said, and its end."""
        code = self._process.exitcode  # before the messages: what came before the end is then there
        while not self._connection.closed and self._connection.poll():
            self._receive()
        if code is not None:
            self.decide(ended(code, began=self._call is None))

    def decide(self, outcome: Outcome) -> None:
        """Let this be the outcome, if there is none yet."""
        self.outcome = outcome if self.outcome is None else self.outcome

    def ask(self) -> None:
        """Ask where it is in its program."""
        if not self._connection.closed:
            with contextlib.suppress(OSError):
                self._connection.send_bytes(WHERE)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        """Kill it and the processes of its group."""
        if self.alive:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it has not made its group yet
                    os.killpg(self._process.pid or 0, signal.SIGKILL)
            self._process.kill()

    def close(self) -> None:
        """Wait for its end after `kill`, and free what belongs to it."""
        self._process.join()
        self._connection.close()
        self._process.close()

    def _receive(self) -> None:
        try:
            message = self._connection.recv()
            if isinstance(message, Ready):
                self._connection.send_bytes(self._call or b"")
                self._call = None
            elif isinstance(message, Whereabouts):
                if isinstance(self.outcome, Failure):
                    self.outcome = self.outcome._replace(details=f"It was here:\n{message.stack}")
            else:
                self.decide(message)
        except (EOFError, OSError):
            self._connection.close()


def results(children: Sequence[Child], *, timeout: float | None, grace: float) -> list[Any]:
    """Wait for all children, then give their values in the order of ``children``.

    Raises:
        LaunchFailed: one has no value.
        KeyboardInterrupt: for a passed on SIGINT that kept a child from returning a value; for SIGTERM this process
            does what it would have done at once.
    """
    with _PassedOn(children) as signals:
        order = _watch(children, signals, timeout, grace)
    outcomes = {child.rank: child.outcome for child in children if child.outcome is not None}
    values = [each for each in outcomes.values() if isinstance(each, Returned)]
    if len(values) == len(children):
        return [_load(child.rank, each.value, outcomes, order) for child, each in zip(children, values, strict=True)]
    if signals.urgent is not None:
        signal.raise_signal(signals.urgent)
    raise launch_failed(outcomes, order)


def _load(rank: int, value: bytes, outcomes: dict[int, Outcome], order: list[int]) -> Any:
    try:
        return pickle.loads(value)
    except Exception as error:
        what = f"returned a value that cannot be read here ({type(error).__name__}: {error})"
        raise launch_failed({**outcomes, rank: Failure(what)}, order) from error


def _watch(children: Sequence[Child], signals: _PassedOn, timeout: float | None, grace: float) -> list[int]:
    """Return when no child runs any more: the ranks in the order in which their outcomes came."""
    ending = _Ending(children)
    limit = None if timeout is None else time.monotonic() + timeout
    order: list[int] = []
    while any(child.alive for child in children):
        wait([source for child in children if child.alive for source in child.sources()], timeout=_LOOK)
        _take_in(children, order)
        if signals.pass_on():
            ending.at_once()
        elif any(isinstance(child.outcome, Failure) for child in children):
            ending.begin(grace, f"was still at work {grace:g} s after the first failure, and was ended")
        elif all(isinstance(child.outcome, Returned) for child in children):
            ending.begin(grace, "")
        elif limit is not None and time.monotonic() >= limit:
            ending.begin(0.0, f"had not returned after {timeout:g} s (timeout), and was ended")
        ending.go_on()
    _take_in(children, order)
    return order


def _take_in(children: Sequence[Child], order: list[int]) -> None:
    for child in children:
        child.look()
        if child.outcome is not None and child.rank not in order:
            order.append(child.rank)


class _Ending:
    """The end of all that still run, step by step: time to end by themselves, a question, SIGTERM, SIGKILL."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._steps: list[tuple[float, Callable[[], None]]] = []
        self._begun = False
        self._reason = ""

    def begin(self, patience: float, reason: str) -> None:
        """Begin, unless it has begun: the first step is in ``patience`` seconds."""
        if not self._begun:
            self._begun, self._reason = True, reason
            first = time.monotonic() + patience
            self._steps = [(first, self._ask), (first + _ANSWER, self._terminate)]
            self._steps.append((first + _ANSWER + _LAST, self.at_once))

    def go_on(self) -> None:
        """Take the steps that are due."""
        while self._steps and time.monotonic() >= self._steps[0][0]:
            self._steps.pop(0)[1]()

    def at_once(self) -> None:
        """Kill them."""
        self._begun, self._steps = True, []
        for child in self._children:
            child.kill()

    def _ask(self) -> None:
        for child in self._children:
            if child.outcome is None:
                child.decide(Failure(self._reason, lost=True))
                child.ask()

    def _terminate(self) -> None:
        for child in self._children:
            child.signal(signal.SIGTERM)


class _PassedOn:
    """A context in which signals to this process are for its children, who know how to stop.

    As in a run: a second SIGINT or SIGTERM aborts, SIGUSR1 is a notice that never does, and is only listened to where
    it would otherwise end the process. In another thread than the main one nothing is listened to.

    Attributes:
        urgent: the first SIGINT or SIGTERM.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self.urgent: signal.Signals | None = None
        self._children = children
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                number = getattr(signal, name, None)
                handler = signal.SIG_IGN if number is None else signal.getsignal(number)
                taken = handler is not signal.SIG_DFL if name == "SIGUSR1" else handler in (signal.SIG_IGN, None)
                if number is not None and not taken:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pass_on(self) -> bool:
        """Give the children what has come since the last call. Returns whether they are to be killed instead."""
        while self._received:
            number = signal.Signals(self._received.pop(0))
            if number in (signal.SIGINT, signal.SIGTERM):
                if self.urgent is not None:
                    return True
                self.urgent = number
            for child in self._children:
                child.signal(number)
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
