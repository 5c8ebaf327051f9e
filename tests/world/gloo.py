"""Processes that stay: they make up one gloo group, and run one function after another, all of them the same."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from ..forked import CONTEXT

TIMEOUT = 60.0


class Group:
    """``world`` processes; `run` calls a module-level function in each and gives back what they return, by rank."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._folder = tempfile.TemporaryDirectory()
        store = os.path.join(self._folder.name, "store")
        self.pipes, self.processes = [], []
        for rank in range(world):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs, rank, world, store), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each process returns; raises AssertionError with the traceback of the first that failed."""
        results = self.outcomes(function, *args)
        for rank, (ok, result) in enumerate(results):
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{result}")
        return [result for _, result in results]

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """The same, with a traceback in the place of a result, and ``None`` in that of one who died."""
        for pipe in self.pipes:
            pipe.send((function, args))
        found = []
        for pipe in self.pipes:
            if not pipe.poll(TIMEOUT):
                self.close()
                raise AssertionError("a process did not answer in time")
            try:
                found.append(pipe.recv())
            except (EOFError, ConnectionError):
                found.append((False, None))
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self._folder.cleanup()


def _serve(pipe: Any, rank: int, world: int, store: str) -> None:
    import datetime

    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=20)
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
