"""``digest``: one line that tells whether two states are the same."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint import open_contents
from .places import single


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "digest",
        help="print a digest of the saved state",
        description="Print a SHA-256 over each leaf's path, type, dtype, shape and bits, in the order of the paths: "
        "helios_fn.tree.digest of the saved state. Two runs that ended in the same bits print the same, whatever their "
        "names, times, configurations, versions and files. Each byte of the checkpoint is checked on the way.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=single, help="a checkpoint, a root (its newest), or a .safetensors"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the digest."""
    print(open_contents(options.path).digest())
    return 0
