"""``export``: the weights as a plain safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import export
from ..text import plural, shown, size
from .places import single


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write the weights as a plain safetensors file",
        description="Write parameters and buffers under the names that nn.Module.load_state_dict expects, for "
        "safetensors.torch.load_file. Nothing is overwritten. Two things a checkpoint cannot know: which tied tensors "
        "have further names (--tie), and which buffers are not persistent, so that no state_dict has them (--omit).",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=single, help="a checkpoint, or a root for its newest")
    parser.add_argument("out", metavar="OUT.safetensors", type=Path, help="the file to make")
    parser.add_argument("--averages", action="store_true", help="take the averaged parameters")
    parser.add_argument("--module", default="", metavar="NAME", help="take this one of several modules in params")
    parser.add_argument("--tie", action="append", default=[], type=_tie, metavar="NEW=OLD", help="a second name")
    parser.add_argument("--omit", action="append", default=[], metavar="PATTERN", help="leave these names out")
    parser.set_defaults(run=run)


def _tie(text: str) -> tuple[str, str]:
    new, equals, old = text.partition("=")
    if not (new and equals and old):
        raise argparse.ArgumentTypeError(f"write NEW=OLD, such as head.weight=embedding.weight; got {text}")
    return new, old


def run(options: argparse.Namespace) -> int:
    """Write the file."""
    done = export(
        options.checkpoint,
        options.out,
        averages=options.averages,
        module=options.module,
        ties=dict(options.tie),
        omit=options.omit,
    )
    print(f"{shown(str(options.out))}: {plural(len(done.names), 'tensor')}, {size(done.size)}")
    return 0
