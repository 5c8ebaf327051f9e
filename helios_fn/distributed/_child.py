"""The program of a launched process: takes its place, calls the function, says what came of it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed

from ._reports import Failure, Outcome, Ready, Returned, Whereabouts, raised

WHERE = b"where"
"""The question to which `Whereabouts` are the answer. The first message is the call; this may follow."""


class Terms(NamedTuple):
    """What a process is to be before it calls the function.

    Attributes:
        environ: all its environment variables.
        threads: the number of threads of torch's operators.
        grace: seconds for it to end by itself when the process that started it is gone.
    """

    environ: Mapping[str, str]
    threads: int
    grace: float


def main(connection: Connection, terms: Terms) -> None:
    """Run one rank."""
    if hasattr(os, "setpgid"):
        # A group of its own: ctrl-C then reaches the rank once, passed on, and it can be killed with its workers.
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(terms.environ)
    torch.set_num_threads(terms.threads)
    np.random.seed()  # else all that one server forks would share its state
    parent = _Parent(connection, terms.grace)
    try:
        parent.tell(Ready())
        call = connection.recv_bytes()
    except (EOFError, OSError):
        return
    threading.Thread(target=parent.listen, name="helios_fn-parent", daemon=True).start()
    outcome = _outcome(call)
    parent.dismissed = True
    with contextlib.suppress(OSError):  # nobody is there any more to be told
        parent.tell(outcome)
    if isinstance(outcome, Returned) and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _outcome(call: bytes) -> Outcome:
    try:
        fn, args, kwargs = pickle.loads(call)
    except Exception as error:
        failure = raised(error)
        return failure._replace(what=f"could not load the function or its arguments: it {failure.what}")
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:
        return raised(error)
    try:
        return Returned(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        kind = type(value)
        return Failure(
            f"returned a value of type {kind.__module__}.{kind.__qualname__}, which cannot be sent back "
            f"({type(error).__name__}: {error})"
        )


class _Parent:
    """The connection to the process that started this one, and what its end means.

    Attributes:
        dismissed: the outcome is there, so that the end of the connection means nothing any more.
    """

    def __init__(self, connection: Connection, grace: float) -> None:
        self._connection = connection
        self._grace = grace
        self._sending = threading.Lock()
        self._main = threading.get_ident()
        self.dismissed = False

    def tell(self, message: Ready | Outcome | Whereabouts) -> None:
        with self._sending:
            self._connection.send(message)

    def listen(self) -> None:
        """Answer questions until the connection ends; if that was too early, end this process.

        The kernel's notice of a parent's death would not do: the parent that it knows may be a server of forks.
        """
        try:
            while self._connection.recv_bytes() == WHERE:
                frame = sys._current_frames().get(self._main)
                self.tell(Whereabouts("".join(traceback.format_stack(frame))))
        except (EOFError, OSError):
            if not self.dismissed:
                self._end()

    def _end(self) -> None:
        # As a scheduler does it: a run saves its state when it is told so, anything else ends at once.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._grace)
        if hasattr(os, "killpg"):
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os._exit(1)
