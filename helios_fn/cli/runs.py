"""What the commands that compare runs have in common: their arguments, and how they end."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LaunchFailed, RunFailed
from ..forensics import Evidence, gather
from ..text import leaves, one_line, shown
from .places import root

_MOST = 8


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add where the job comes from that is to be executed again."""
    parser.add_argument(
        "--job", metavar="MODULE:FUNCTION",
        help="a function without arguments that returns a helios_fn.testing.Job (default: the experiment that the "
        "checkpoint records)",
    )  # fmt: skip
    parser.add_argument(
        "--discover", action="append", default=[], metavar="PACKAGE", help="import this package first; for experiments"
    )
    parser.add_argument(
        "--trust", action="store_true", help="import what the checkpoint names: only for folders that you trust"
    )


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Add two runs."""
    parser.add_argument("left", metavar="RUN_A", type=root, help="the root of a run")
    parser.add_argument("right", metavar="RUN_B", type=root, help="the root of another")
    add_name(parser)


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add which run is meant."""
    parser.add_argument("--name", help="which run, where a root holds several")


def evidence(path: Path, name: str | None) -> Evidence:
    """What a root tells; the name counts where it holds several runs."""
    try:
        return gather(path)
    except CheckpointError:
        if name is None:
            raise
        return gather(path, name)


def or_two(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command with status 2 where it could not do its work: 1 means that something differs."""

    @functools.wraps(run)
    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except (CheckpointError, RunFailed, LaunchFailed, ValueError, TypeError, OSError, ImportError) as error:
            print(f"python -m helios_fn {options.command}: {shown(one_line(str(error)))}", file=sys.stderr)
            return 2

    return guarded


def some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(shown(name) for name in names[:_MOST]) + more


def differing(count: int) -> str:
    """How many leaves differ, in words."""
    return f"{leaves(count)} differ{'s' * (count == 1)}"


def value(thing: Any) -> str:
    """A value of a manifest, in a line."""
    return shown(str(thing), 60)
