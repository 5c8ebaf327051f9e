"""``test``: evaluate a trained experiment."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..experiment import Built, by_member, load_run
from ..experiment.reload import with_newest
from ..text import lines_out, number, shown, table
from .train import add_experiment, load


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "test",
        help="evaluate a trained experiment on its [test] data",
        description="Evaluate the newest checkpoint on the data of [test], or of [valid] where there is no [test], and "
        "print the metrics. Of an experiment's file: its run.root, and each member of a sweep. Of the folder of a run: "
        "the experiment that its checkpoint records, built of parts that the packages of --discover register.",
    )
    add_experiment(
        parser, what="EXPERIMENT.toml|RUN", help="an experiment's file, the folder of a run, or a checkpoint"
    )
    parser.add_argument(
        "--discover", action="append", default=[], metavar="PACKAGE", help="import this package first; for folders"
    )
    parser.add_argument(
        "--trust", action="store_true", help="import what the checkpoint names: only for folders that you trust"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and print the metrics."""
    found: dict[str, Mapping[str, float]] = {}
    for name, built in _built(options).items():
        metrics = built.test()
        found.update(by_member(built.experiment, metrics) if built.experiment.sweep else {name: metrics})
    names = list(dict.fromkeys(name for metrics in found.values() for name in metrics))
    if list(found) == [""]:
        lines_out(table([[shown(name), number(found[""][name])] for name in names], right=[1]))
        return 0
    rows = [[shown(name), *(number(metrics[each]) for each in names)] for name, metrics in found.items()]
    lines_out(table([["member", *map(shown, names)], *rows], right=range(1, len(names) + 1)))
    return 0


def _built(options: argparse.Namespace) -> dict[str, Built]:
    if options.path.is_dir():
        if options.settings:
            raise ValueError("--set is for an experiment's file; the folder of a run holds an experiment that was run")
        return {"": load_run(options.path, discover=True if options.trust else options.discover)}
    experiment = load(options.path, dict(options.settings))
    together = experiment.sweep is not None and experiment.sweep.together
    members = {"": experiment} if together else experiment.members()
    return {name: with_newest(each.build()) for name, each in members.items()}
