"""Processes that live from one test to the next, and form a world of another size each time.

Starting them costs more than the small runs of an example. A task gets torchrun's variables for a place in a world of
its own, and joins it and leaves it as a launched process would.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import traceback
from typing import Any, NamedTuple

import torch
from torch import distributed

from helios_fn.distributed.environment import Place, variables

# The package has a function of the same name.
launching = importlib.import_module("helios_fn.distributed.launch")


class Raised(NamedTuple):
    """What a rank raised instead of returning a value."""

    kind: str
    message: str
    details: str


class Pool:
    """Ranks to be called: ``pool(fn, *args, processes=n)`` is `launch` without the cost of new processes."""

    def __init__(self) -> None:
        self._members: list[tuple[Any, Any]] = []

    def __call__(self, fn, *args, processes, **keywords) -> list:
        """Each rank's value; a rank that raises is a failure."""
        found = self.outcomes(fn, *args, processes=processes, **keywords)
        for rank, outcome in enumerate(found):
            assert not isinstance(outcome, Raised), f"rank {rank} of {processes}:\n{outcome.details}"
        return found

    def outcomes(self, fn, *args, processes, seconds=30.0, **keywords) -> list:
        """Each rank's value, or what it `Raised`."""
        self._grow(processes)
        store = launching._store()  # a world's own: what the one before has left in it is not valid any more
        found = []
        try:
            for rank, (_, connection) in enumerate(self._members[:processes]):
                place = variables(Place(rank, processes, rank, processes), "127.0.0.1", store.port)
                connection.send((place, seconds, fn, args, keywords))
            for rank, (_, connection) in enumerate(self._members[:processes]):
                assert connection.poll(seconds), f"rank {rank} of {processes} is stuck in {fn.__name__}"
                found.append(connection.recv())
        except BaseException:
            self.close()  # whatever they are at, the next task needs others
            raise
        return found

    def close(self) -> None:
        """End all members; the next call starts new ones."""
        for process, connection in self._members:
            process.kill()
            process.join()
            connection.close()
        self._members.clear()

    def _grow(self, size: int) -> None:
        context = launching._context("forkserver")
        while len(self._members) < size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))


def _serve(connection) -> None:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    while True:
        try:
            environ, seconds, fn, args, keywords = connection.recv()
        except EOFError:
            return
        os.environ.update(environ)
        faulthandler.dump_traceback_later(0.9 * seconds)  # to stderr, which pytest shows
        try:
            outcome = fn(*args, **keywords)
        except BaseException as error:
            outcome = Raised(type(error).__name__, str(error), traceback.format_exc())
        if distributed.is_initialized():
            distributed.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
        connection.send(outcome)
