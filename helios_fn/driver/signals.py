"""Signals as a flag: the first one asks the run to stop at the next boundary, a second SIGTERM or SIGINT aborts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Self

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Schedulers send SIGUSR1 as a notice some time before they mean it."""

# Handlers belong to the process, so the contexts of all runs share one. Runs need not end in the order
# in which they began, nor in the thread: whoever keeps several loops of their own may do as they like.
_listening: list[StopSignal] = []
_previous: dict[signal.Signals, Any] = {}


class StopSignal:
    """A context in which the first signal only sets ``received``.

    SIGTERM and SIGINT are always listened to, SIGUSR1 where it would otherwise end the process: a handler
    that somebody has installed for it stays. Being a notice, SIGUSR1 never aborts, and what follows it is a first
    SIGTERM all the same.

    Python runs signal handlers in the main thread, and installs them there alone; a context opened in
    another thread listens to nothing, and signals keep the meaning that the main thread gives them.

    A run inside another one (in its validation, say) does not listen: stopping it in the middle would
    give the outer run a truncated result. Set ``waiting`` while the code of somebody else is running.

    Attributes:
        received: the first signal.
        urged: whether there was one of those of which a second one aborts.
        aborted: whether that second one has come.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.waiting = self.urged = self.aborted = False

    def __enter__(self) -> Self:
        inside = any(not other.waiting for other in _listening)
        if threading.current_thread() is threading.main_thread() and not inside:
            if not _listening:
                _install()
            _listening.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in _listening:
            _listening.remove(self)
        if not _listening and threading.current_thread() is threading.main_thread():
            _restore()


def _install() -> None:
    for number in HANDLED:
        taken = number == signal.SIGUSR1 and signal.getsignal(number) is not signal.SIG_DFL
        if number not in _previous and not taken:
            _previous[number] = signal.signal(number, _handle)


def _restore() -> None:
    for number, handler in _previous.items():
        # A handler that was not installed from Python reads as None and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _previous.clear()


def _handle(number: int, frame: FrameType | None) -> None:
    unaware = [each for each in _listening if each.received is None]
    for each in unaware:
        each.received = signal.Signals(number)
    if unaware:
        _announce(signal.Signals(number).name)
    if number == signal.SIGUSR1:
        return
    if all(each.urged for each in _listening):
        for each in _listening:
            each.aborted = True
        _restore()
        signal.raise_signal(number)
    for each in _listening:
        each.urged = True


def _announce(name: str) -> None:
    # Not through print or logging: the handler may have interrupted either in the middle of a write.
    message = f"{name}: stopping after this iteration and its validation; a second signal aborts without saving"
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
