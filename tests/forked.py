"""Processes that start in milliseconds: forks of a server that has imported once what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from typing import BinaryIO

import torch

# The server never computed anything, so that its forks are as good as new. One list for all tests: there is one server.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.crash.child",
        "helios_fn.distributed._child",
        "helios_fn.optim._adamw",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed.checkpoint",
        "tests.world.checkpoint_jobs",
        "tensorboard.compat.proto.event_pb2",
        "sklearn.datasets",
    ]
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
        self.process = CONTEXT.Process(target=_run_file, args=(words, str(cwd), str(self._said)))
        self.process.start()

    def lines(self) -> list[str]:
        """What it has printed, when it has ended well."""
        self.process.join(300)
        assert self.process.exitcode == 0, self._said.with_suffix(".stderr").read_text()
        return self._said.read_text().splitlines()


def run(command: list[str], *, stdout: BinaryIO, env: dict[str, str], **_: object) -> subprocess.CompletedProcess:
    """What ``subprocess.run`` does with ``[sys.executable, "-m", module, *arguments]``, errors going to ``stdout``."""
    _, dash_m, *words = command
    assert dash_m == "-m"
    process = CONTEXT.Process(target=_run_module, args=(words, stdout.name, env))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode)


def stay_with_the_server() -> None:
    """Have this process's own children come from the same server: multiprocessing would import torch in a new one."""
    _forkserver.ensure_running = lambda: None


def _run_file(words: list[str], cwd: str, said: str) -> None:
    begin(words, said, str(Path(said).with_suffix(".stderr")))
    os.chdir(cwd)
    warnings.simplefilter("error", UserWarning)
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def _run_module(words: list[str], said: str, env: dict[str, str]) -> None:
    begin(words, said, said)
    os.environ.update(env)
    sys.path[:] = env["PYTHONPATH"].split(os.pathsep)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def begin(words: list[str], out: str, err: str) -> None:
    """Become like a program started by hand: a command line, files to write to, workers that are forks."""
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
    multiprocessing.set_start_method("fork", force=True)
    stay_with_the_server()
    torch.set_num_threads(1)  # as everywhere in the tests: threads without a core of their own cost ten times the time
    sys.argv = words
