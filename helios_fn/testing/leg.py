"""The program of one process: ``python -m helios_fn.testing.leg`` runs or resumes a job up to one interruption.

What it does is told line by line in a journal, so that nothing is lost when it is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import PurityError
from .digests import Digests, leaf_digests
from .interrupt import KINDS, Stop
from .spec import load_job
from .trace import run_leg


class Journal:
    """A file of JSON lines; each has reached the operating system when the call returns."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note_start(self, digests: Digests, /) -> None:
        """The initial state."""
        self.note({"start": digests})

    def note_batch(self, iteration: int, digests: Digests, /) -> None:
        """A batch that the step received."""
        self.note({"iteration": iteration, "batch": digests})

    def note_metrics(self, iteration: int, digests: Digests, /) -> None:
        """What the step gave."""
        self.note({"iteration": iteration, "metrics": digests})

    def note(self, line: Mapping[str, Any]) -> None:
        """Any line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helios_fn.testing.leg", description=__doc__)
    parser.add_argument("job", metavar="MODULE:FUNCTION")
    parser.add_argument("root", type=Path, help="the root of the run")
    parser.add_argument("journal", type=Path, help="the file to append to")
    parser.add_argument("--ambient", type=int, default=1, help="seed of the global generators")
    parser.add_argument("--iteration", type=int, default=None, help="where to be interrupted (default: nowhere)")
    parser.add_argument("--kind", choices=KINDS, default="crash")
    return parser


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the leg; 0 unless the job failed."""
    options = _parser().parse_args(arguments)
    stop = None if options.iteration is None else Stop(options.iteration, options.kind)
    with options.journal.open("a", encoding="utf-8") as file:
        journal = Journal(file)
        try:
            result = run_leg(load_job(options.job).in_root(options.root), stop, options.ambient, journal, _die)
        except Exception as error:
            impure = isinstance(error, PurityError) or isinstance(error.__cause__, PurityError)
            journal.note({"failed": traceback.format_exc(), "impure": impure})
            return 1
        if result is not None:
            journal.note({"reason": result.reason.name, "final": leaf_digests(result.state)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
