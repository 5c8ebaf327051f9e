"""``migrate``: write checkpoints of older formats anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import FORMAT
from ..checkpoint.migrate import migrate
from ..checkpoint.superseded import superseded
from ..errors import CheckpointError, ResumeRefused
from ..text import one_line, plural, shown
from .places import found_in, root


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "migrate",
        help="write checkpoints of older formats anew",
        description="Write the checkpoints of a root that are in an older format into a new root, in the present one. "
        "The old ones stay as they are, and so does what is in ROOT/superseded and ROOT/damaged.",
    )
    parser.add_argument("root", metavar="ROOT", type=root, help="the folder of a run")
    parser.add_argument("--into", metavar="NEW", type=Path, help="the root to make (default: ROOT-migrated)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Migrate, unless all is current."""
    found = [entry for _, entry in found_in(options.root)]
    # Refused is what was written for another version; what is damaged, `migrate` says by itself.
    if not any(isinstance(entry, ResumeRefused) for entry in found):
        for entry in found:
            if isinstance(entry, CheckpointError):
                print(f"passed over: {shown(one_line(str(entry)))}")
        current = [entry for entry in found if isinstance(entry, Checkpoint)]
        where = f"{plural(len(current), 'checkpoint')} in {shown(str(options.root))}"
        print(f"nothing needs migrating: {where}, all in format {FORMAT}")
        _tell_superseded(options.root)
        return 1 if len(current) < len(found) else 0
    done = migrate(options.root, options.into)
    for old, new, number, problem in done:
        became = f"passed over: {one_line(problem)}" if new is None else f"from format {number} to {FORMAT}: {new}"
        print(shown(f"{old.name} {became}"))
    _tell_superseded(options.root)
    return 1 if any(each.new is None for each in done) else 0


def _tell_superseded(root: Path) -> None:
    aside = superseded(root)
    if aside:
        count = plural(sum(entry.checkpoints for entry in aside), "checkpoint")
        print(f"not looked at: {count} in superseded; migrate {shown(str(aside[-1].path))} is about the last of them")
