"""``replay``: one iteration of a run, executed again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..distributed import launch
from ..forensics import Replay
from ..forensics import replay as replay_here
from ..text import lines_out, shown
from .places import root
from .runs import add_job, add_name, differing, evidence, or_two, some


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "replay",
        help="execute one iteration of a run again",
        description="Execute one iteration of a run again, with the same batch and noise, from the nearest checkpoint "
        "before it; print its metrics and digest, and whether they equal what the run has recorded. Status 0: they do, "
        "or nothing was recorded. 1: something differs. 2: it could not be done.",
    )
    parser.add_argument("root", metavar="RUN", type=root, help="the root of the run")
    parser.add_argument("--iteration", metavar="K", type=int, required=True, help="which, from 1: as in the log")
    add_name(parser)
    add_job(parser)
    parser.add_argument("--device", metavar="DEVICE", help="where to compute instead; bits may differ")
    parser.add_argument("--debug", action="store_true", help="stop in pdb at the first line of your own code in it")
    parser.add_argument("--processes", type=int, metavar="W", help="compute with W processes on this machine")
    parser.set_defaults(run=or_two(run))


def run(options: argparse.Namespace) -> int:
    """Execute, and say what came of it."""
    discover = True if options.trust else tuple(options.discover)
    arguments = (options.root, options.name, options.iteration, options.job, options.device, options.debug, discover)
    if options.processes is None:
        status, told = _replay(*arguments)
    elif options.debug:
        raise ValueError("--debug speaks to one process: leave out --processes")
    else:
        status, told = launch(_replay, *arguments, processes=options.processes)[0]
    lines_out(told)
    return status


def _replay(
    path: Path, name: str | None, iteration: int, job: str | None, device: str | None, debug: bool, discover: Any
) -> tuple[int, list[str]]:
    """The work of one process; what rank 0 returns counts."""
    found = replay_here(evidence(path, name), iteration, job, device=device, debug=debug, discover=discover)
    return int(found.agrees is False), list(_lines(found))


def _lines(found: Replay) -> Iterator[str]:
    start = found.start
    yield f"iteration {found.iteration}, executed again from iteration {start.iteration} ({shown(start.path.name)})"
    yield "  " + "  ".join(f"{shown(name)} {value!r}" for name, value in found.metrics.items())
    if found.grad_norm is not None:
        yield f"  gradient norm {found.grad_norm!r}"
    if found.digest is not None:
        yield f"  digest {found.digest}"
    for check in found.checks:
        if check.by is None:
            yield f"{check.what}: not recorded"
        elif not check.differing:
            yield f"{check.what}: equal ({check.by})"
        elif check.what in ("batch", "state"):
            yield f"{check.what}: {differing(len(check.differing)).upper()} ({check.by}): {some(check.differing)}"
        else:
            yield f"{check.what}: DIFFERENT ({check.by}): {some(check.differing)}"
