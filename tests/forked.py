"""Processes that start in milliseconds: forks of a server that has imported once what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from pathlib import Path

# The server never computed anything, so that its forks are as good as new. One list for all tests: there is one server.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.crash.child", "torch._dynamo", "tensorboard.compat.proto.event_pb2", "sklearn.datasets"]
)


class Script:
    """A Python file run as ``python -W error::UserWarning FILE ARGUMENTS...`` would, without the wait for imports.

    Args:
        file: the program.
        arguments: its command line.
        cwd: the folder that it runs in.
    """

    def __init__(self, file: Path, *arguments: object, cwd: Path) -> None:
        self._said = cwd / f"{len(list(cwd.glob('*.stdout')))}.stdout"
        self._said.touch()
        words = [str(file), *map(str, arguments)]
        self.process = CONTEXT.Process(target=_run, args=(words, str(cwd), str(self._said)))
        self.process.start()

    def lines(self) -> list[str]:
        """What it has printed, when it has ended well."""
        self.process.join(300)
        assert self.process.exitcode == 0, self._said.with_suffix(".stderr").read_text()
        return self._said.read_text().splitlines()


def _run(words: list[str], cwd: str, said: str) -> None:
    os.chdir(cwd)
    for stream, path in ((sys.stdout, said), (sys.stderr, Path(said).with_suffix(".stderr"))):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
        os.close(file)
    multiprocessing.set_start_method("fork", force=True)  # as in a program started by hand
    warnings.simplefilter("error", UserWarning)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")
