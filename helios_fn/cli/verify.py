"""``verify``: read checkpoints and check each byte of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint import verify
from ..errors import CheckpointError
from ..text import one_line, plural, shown, size
from .places import found_in, is_checkpoint, place


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "verify",
        help="check each byte of checkpoints",
        description="Read checkpoints and check each byte of them. Status 1 if one is damaged, with the file named.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=place, help="a checkpoint, or a root for all in it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the checkpoints one by one."""
    valid = damaged = 0
    for path in _checkpoints(options.paths):
        try:
            total = sum(entry.size for entry in verify(path).files.values())
        except CheckpointError as error:
            if not path.exists():
                continue  # a run that is going on has removed it meanwhile
            damaged += 1
            print(f"DAMAGED  {shown(one_line(str(error)))}", flush=True)
        else:
            valid += 1
            print(f"valid    {shown(str(path))}  ({size(total)})", flush=True)
    print(f"{plural(valid, 'checkpoint')} valid, {damaged} damaged")
    return 1 if damaged or not valid else 0


def _checkpoints(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.suffix == ".safetensors" and path.is_file():
            raise CheckpointError(f"{path} is a plain file, which holds nothing that it could be checked against")
        if is_checkpoint(path):
            yield path.resolve()
        else:
            yield from (found for found, _ in found_in(path))
