"""``bisect``: which iteration made two runs part, and which of them was disturbed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..forensics import Bisection
from ..forensics import bisect as bisect_runs
from ..forensics.bisection import Departure
from ..text import lines_out, shown
from .compare import lines as compared
from .runs import add_job, add_pair, differing, evidence, or_two, some

_VERDICTS = {
    "left": "the execution agrees with B: A was disturbed, or made of another program or environment",
    "right": "the execution agrees with A: B was disturbed, or made of another program or environment",
    "both": "the execution agrees with neither run: it is not their program, data or environment, or not deterministic",
    "neither": "the execution agrees with all that both have recorded of these iterations",
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bisect",
        help="execute what lies between two runs' last common state and their difference again",
        description="Execute the iterations from the last common checkpoint of two runs to their first difference "
        "again, and hold each against all that both have recorded: which iteration made them differ, in which leaves, "
        "and which of the two was disturbed. With --other, execute two jobs side by side instead, and find the exact "
        "iteration at which they part. Status 0: the runs do not differ. 1: they do. 2: it could not be done.",
    )
    add_pair(parser)
    add_job(parser)
    parser.add_argument("--other", metavar="MODULE:FUNCTION", help="the job of RUN_B, if it is another")
    parser.set_defaults(run=or_two(run))


def run(options: argparse.Namespace) -> int:
    """Execute, and say what was found."""
    discover = True if options.trust else options.discover
    left, right = (evidence(side, options.name) for side in (options.left, options.right))
    found = bisect_runs(left, right, options.job, options.other, discover=discover)
    lines_out(compared(found.comparison))
    lines_out(_lines(found))
    return 0 if found.comparison.different is None else 1


def _lines(found: Bisection) -> Iterator[str]:
    if found.start is None:
        return
    yield f"executed again from iteration {found.start.iteration} ({shown(found.start.path.name)})"
    sides = {"A": found.left, "B": found.right}
    if found.disturbed is None:
        sides = {"the second execution": found.right}
    for name, side in sides.items():
        if side is not None:
            yield from _departure(name, side)
    if found.micro_steps:
        yield f"micro-steps whose batches differ: {', '.join(map(str, found.micro_steps))}"
    if found.disturbed is not None:
        yield _VERDICTS[found.disturbed]


def _departure(name: str, side: Departure) -> Iterator[str]:
    if side.departs is None:
        yield f"{name} agrees up to {side.agrees}"
        return
    exactly = "in exactly this iteration" if side.pinned else f"after iteration {side.agrees.iteration}"
    yield f"{name} agrees up to {side.agrees}, departs at {side.departs}: {exactly}"
    parts = {
        "batch": some(side.batch) if side.batch else "",
        "state": f"{differing(len(side.leaves))}: {some(side.leaves)}" if side.leaves else "",
        "metrics": some(side.metrics) if side.metrics else "",
    }
    for part, told in parts.items():
        if told:
            yield f"  {part}: {told}"
