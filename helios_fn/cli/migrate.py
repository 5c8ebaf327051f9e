"""``migrate``: write checkpoints of older formats anew."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import FORMAT
from ..errors import CheckpointError, ResumeRefused
from .places import found_in, root
from .text import one_line, plural, shown


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "migrate",
        help="write checkpoints of older formats anew",
        description="Write the checkpoints of a root that are in an older format into a new root, in the present one. "
        "The old ones stay as they are.",
    )
    parser.add_argument("root", metavar="ROOT", type=root, help="the folder of a run")
    parser.add_argument("--into", metavar="NEW", type=Path, help="the root to make (default: ROOT-migrated)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Migrate, unless all is current."""
    found = found_in(options.root)
    current = [entry for _, entry in found if isinstance(entry, Checkpoint)]
    older = [path for path, entry in found if isinstance(entry, ResumeRefused)]
    damaged = [
        entry for _, entry in found if isinstance(entry, CheckpointError) and not isinstance(entry, ResumeRefused)
    ]
    for error in damaged:
        print(f"passed over: {shown(one_line(str(error)))}")
    if not older:
        where = f"{plural(len(current), 'checkpoint')} in {shown(str(options.root))}"
        print(f"nothing needs migrating: {where}, all in format {FORMAT}")
        return 1 if damaged else 0
    into = options.into or options.root.resolve().with_name(options.root.resolve().name + "-migrated")
    for path in importlib.import_module("helios_fn.checkpoint.migrate").migrate(options.root, into):
        print(shown(str(path)))
    return 1 if damaged else 0
