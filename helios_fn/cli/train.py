"""``train``: run the experiment of a TOML file."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distributed import launch
from ..distributed.environment import place
from ..errors import LaunchFailed, RunFailed
from ..experiment import Experiment, Outcome, parse_value, run_members
from ..text import lines_out, number, one_line, shown, table
from ..types import EX_TEMPFAIL, Reason

_PYTHON = os.path.dirname(os.__file__) + os.sep  # its own library


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="run the experiment of a TOML file, or go on with it",
        description="Run the experiment of a TOML file. With run.root set, the same line again goes on where it was "
        "stopped, and ends in the same bits. A file with a section [sweep] is run once for each combination of its "
        "values. Packages in discover are looked for as by an import, and beside the file.",
        epilog="Examples:  --set optimizer.lr=1e-3   --set run.total=20   --set model.name=cnn   "
        "--set sweep.together=true.  Status 0: finished. 75: stopped by a signal or max_time; the same line goes on. "
        "1: failed. 2: the arguments are wrong.",
    )
    add_experiment(parser)
    parser.add_argument("--processes", type=_count, metavar="N", help="train in N processes on this machine")
    parser.add_argument(
        "--show", action="store_true", help="print the experiment as it would be run, and do nothing else"
    )
    parser.add_argument("--traceback", action="store_true", help="if training fails, print the library's frames, too")
    parser.set_defaults(run=run)


def add_experiment(parser: argparse.ArgumentParser, *, what: str = "EXPERIMENT.toml", help: str = "the file") -> None:
    """Add a path, and what may be set over it."""
    parser.add_argument("path", metavar=what, type=Path, help=help)
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, dest="settings", metavar="KEY=VALUE",
        help="set a key of the file, with dots between sections; the value as in TOML, plain words without quotes",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Train, and tell what became of it."""
    overrides = dict(options.settings)
    experiment = load(options.path, overrides)
    if options.show:
        lines_out(shown(line) for line in experiment.dumps().splitlines())
        return 0
    try:
        if options.processes is None:
            return _train(options.path, overrides)
        return max(launch(_train, options.path, overrides, processes=options.processes))
    except LaunchFailed as error:
        print(f"python -m helios_fn train: {error}", file=sys.stderr)
    except RunFailed as error:
        if options.traceback:
            raise
        lines_out(_own_traceback(error), file=sys.stderr)
        print(f"python -m helios_fn train: {shown(one_line(str(error)))}", file=sys.stderr)
    return 1


def _own_traceback(error: RunFailed) -> list[str]:
    """Where the user's own code raised: the traceback without this package's frames."""
    cause = error.__cause__
    package = str(Path(__file__).resolve().parents[1])
    frames = [] if cause is None else traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(package)]
    if all(frame.filename.startswith(_PYTHON) and "site-packages" not in frame.filename for frame in own):
        return []
    told = "".join(traceback.format_list(own)).splitlines()
    return ["Traceback of your own code (all of it: --traceback):", *told]


def load(path: Path, overrides: Mapping[str, Any]) -> Experiment:
    """Read an experiment, and let its packages be found beside it, after all other places.

    Raises:
        ValueError: it is no file, or something in it is wrong.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not the TOML file of an experiment. To go on with a run, name its file")
    if not path.exists():
        raise ValueError(f"there is no experiment {path}")
    experiment = Experiment.load(path, overrides)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return experiment


def _train(path: Path, overrides: Mapping[str, Any]) -> int:
    """The work of one process; status as of the command."""
    from ..distributed import current  # once `run` has connected, if it does

    outcomes = run_members(load(path, overrides), announce=_announce)
    if current().is_main:
        lines_out(summary(outcomes))
    return status(outcomes)


def _announce(text: str) -> None:
    if place().rank == 0:
        print(shown(text), file=sys.stderr, flush=True)


def status(outcomes: list[Outcome]) -> int:
    """The exit status: 75 if the same line would go on, 1 if something failed, else 0."""
    reasons = [outcome.reason for outcome in outcomes]
    if Reason.SIGNAL in reasons or Reason.TIME in reasons:
        return EX_TEMPFAIL
    return 0 if all(reason is not None and reason.finished for reason in reasons) else 1


def summary(outcomes: list[Outcome]) -> list[str]:
    """What became of a run in two lines, or of a sweep in a table."""
    if len(outcomes) == 1 and not outcomes[0].name:
        (outcome,) = outcomes
        assert outcome.reason is not None
        metrics = "  ".join(f"{name} {number(value)}" for name, value in outcome.metrics.items())
        return [f"iteration {outcome.iteration}: {outcome.reason.value}", *([shown(metrics)] if metrics else [])]
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    rows = [["member", "iteration", *map(shown, names), ""]]
    for outcome in outcomes:
        cells = [number(outcome.metrics[name]) if name in outcome.metrics else "" for name in names]
        end = outcome.reason.value if outcome.reason is not None else f"FAILED: {one_line(outcome.failure)}"
        rows.append([shown(outcome.name), str(outcome.iteration), *cells, shown(end)])
    return table(rows, right=range(1, len(names) + 2))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"write KEY=VALUE, such as optimizer.lr=1e-3; got {text}")
    try:
        return key.strip(), parse_value(value.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{key}: {error}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of processes is at least 1, got {text}")
    return int(text)
