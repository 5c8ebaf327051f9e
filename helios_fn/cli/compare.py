"""``compare``: the first iteration at which two runs differ."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..forensics import Comparison
from ..forensics import compare as compare_runs
from ..text import lines_out, plural, shown
from .runs import add_pair, differing, evidence, or_two, some, value

_FIRST = {
    "batch": "the batch that the step received differs; batches do not depend on the state, so look at the data",
    "state": "the state differs, and the batch that the step received is equal, so look at the step",
    "validation": "only what validation found differs, so look at the validation",
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "compare",
        help="find the first iteration at which two runs differ",
        description="Find the first iteration at which two runs differ, from what they have left: rows of JSONL logs "
        "(bit for bit), fingerprints (RunConfig.fingerprint_every) and checkpoints; and what their versions, "
        "environments and configurations have not in common. Status 0: equal as far as they can be compared. 1: "
        "different. 2: they cannot be compared.",
    )
    add_pair(parser)
    parser.set_defaults(run=or_two(run))


def run(options: argparse.Namespace) -> int:
    """Compare, and say what was found."""
    found = compare_runs(*(evidence(side, options.name) for side in (options.left, options.right)))
    lines_out(lines(found))
    return 0 if found.different is None else 1


def lines(found: Comparison) -> Iterator[str]:
    """What was found, in words."""
    for name, left, right in found.facts:
        yield f"{shown(name)}: {value(left)} in A, {value(right)} in B"
    if found.different is None:
        known = "" if found.equal is None else f"; the last equal states are at {found.equal}"
        yield f"equal in {plural(found.compared, 'iteration')} that both recorded{known}"
        ends = found.left.last, found.right.last
        if ends[0] != ends[1]:
            yield f"A is known up to iteration {ends[0]}, B up to {ends[1]}"
        return
    equal = "not known to be equal anywhere before" if found.equal is None else f"equal at {found.equal}"
    yield f"{equal}, different at {found.different}"
    if found.first is not None:
        yield _FIRST[found.first]
    if found.batch:
        yield f"batch: {some(found.batch)}"
    if found.leaves:
        where = "" if found.leaves_at == found.different else f" at {found.leaves_at}"
        yield f"state: {differing(len(found.leaves))}{where}: {some(found.leaves)}"
    for pair in found.metrics:
        yield f"{pair.kind} row: {shown(pair.name)} is {pair.left!r} in A, {pair.right!r} in B"
    if not found.pinned and found.equal is not None:
        first, last = found.equal.iteration + 1, found.different.iteration
        yield f"which of iterations {first} to {last} made them differ is not known: bisect, or log fingerprints"
