"""The parser of all commands, and what their ends mean."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import CheckpointError
from ..text import one_line, shown
from . import bisect, compare, diff, digest, export, inspect, migrate, plot, prune, replay, test, train, verify

_COMMANDS = (train, test, plot, inspect, verify, diff, digest, compare, bisect, replay, export, prune, migrate)
_UNKNOWN = re.compile(r"argument COMMAND: invalid choice: '([^']*)'")
_BROKEN_PIPE = 128 + 13  # what a shell reports of a program that SIGPIPE has ended


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end with status 2."""
        self.exit(2, f"{self.prog}: {one_line(_with_guess(message))}; see {self.prog} --help\n")


def _with_guess(message: str) -> str:
    """argparse's message; where an unknown command resembles a known one, that one instead of the list of all."""
    unknown = _UNKNOWN.search(message)
    if unknown is None:
        return message
    names = [module.__name__.rpartition(".")[2] for module in _COMMANDS]
    close = difflib.get_close_matches(unknown[1], names, n=1)
    return f"there is no command {unknown[1]!r}; did you mean {close[0]!r}" if close else message


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m helios_fn``."""
    found = Parser(
        prog="python -m helios_fn",
        description="Run experiments, look at their curves, look after checkpoints, and find out where runs differ. "
        "No command changes a "
        "checkpoint in place or runs anything that is in one.",
        epilog="Status 0: done, and nothing wrong was found. 1: a negative finding (damaged, different, refused). "
        "2: the arguments are wrong.",
    )
    commands = found.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its status, see ``--help``."""
    prog = "python -m helios_fn"
    try:
        options = parser().parse_args(arguments)
        prog = f"{prog} {options.command}"
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return 128 + 2
    except (CheckpointError, ValueError, OSError, ImportError) as error:
        print(f"{prog}: {shown(one_line(str(error)))}", file=sys.stderr)
        return 1
