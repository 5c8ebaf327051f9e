"""``prune``: remove checkpoints that a policy does not keep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import OS, Checkpoint, Lock, Store
from ..checkpoint.pruning import Plan, plan
from ..checkpoint.retention import metrics_of
from ..checkpoint.superseded import Superseded, remove_superseded, superseded
from ..config import Retention
from ..errors import CheckpointError
from ..text import lines_out, number, one_line, plural, shown, size, table
from .places import found_in, root


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "prune",
        help="remove checkpoints that a policy does not keep",
        description="Show which checkpoints helios_fn.Retention would keep and, with --delete, remove the others. The "
        "two newest valid ones always stay, and so does what is damaged. With --superseded, the same for what resumes "
        "from older checkpoints moved aside. Nothing is removed while a run uses the root.",
    )
    parser.add_argument("root", metavar="ROOT", type=root, help="the folder of a run")
    parser.add_argument("--last", type=int, metavar="K", help="keep the K newest")
    parser.add_argument("--best", type=int, default=0, metavar="M", help="keep the M best by --monitor")
    parser.add_argument("--monitor", metavar="NAME", help="the validation metric to go by")
    parser.add_argument("--mode", choices=["min", "max"], default="min", help="which is better (default: min)")
    parser.add_argument("--every", type=int, metavar="N", help="keep the first after each multiple of N iterations")
    parser.add_argument("--superseded", action="store_true", help="also, or only, all that is in ROOT/superseded")
    parser.add_argument("--name", metavar="RUN", help="the name of the run, where the root holds several")
    acting = parser.add_mutually_exclusive_group()
    acting.add_argument("--delete", action="store_true", help="remove them")
    acting.add_argument("--dry-run", action="store_true", help="only show what would be removed (the default)")
    parser.set_defaults(run=lambda options: run(options, parser))


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Show the plan, and carry it out where that is asked for."""
    has_rule = options.last is not None or options.every is not None or options.best
    if not has_rule and not options.superseded:
        parser.error("give a rule: --last, --best or --every; or --superseded")
    if has_rule:
        try:
            policy = Retention(options.last, options.best, options.monitor, options.mode, options.every)
        except ValueError as error:
            parser.error(str(error).replace("Retention.", "--"))
        _prune(options, policy)
    aside = superseded(options.root)
    if options.superseded and options.delete:
        _delete_superseded(options.root)
    elif options.superseded:
        lines_out(f"goes  {_contents(entry)}" for entry in aside)
        print(_superseded("would be removed", aside) + ("; --delete removes them" if aside else ""))
    elif aside:
        print(f"{_superseded('stay', aside)}; --superseded is for them")
    return 0


def _prune(options: argparse.Namespace, policy: Retention) -> None:
    entries = [entry for _, entry in found_in(options.root) if isinstance(entry, Checkpoint)]
    name = _run_name(entries, options)
    if policy.monitor is not None and not any(policy.monitor in metrics_of(entry.record) for entry in entries):
        known = sorted({metric for entry in entries for metric in metrics_of(entry.record)})
        raise ValueError(f"no checkpoint has a metric {policy.monitor!r}; there are {', '.join(known) or 'none'}")
    if options.delete:
        _delete(options.root, name, policy)
        return
    own = [entry for entry in reversed(entries) if entry.manifest.run == name]
    decided, _ = plan(OS, own, policy, {})
    _show(decided, policy)
    gone = list(decided.removed)
    print(f"{_summary('would be removed', gone)}; --delete removes them" if gone else "all stay")


def _delete_superseded(path: Path) -> None:
    with Lock(path / "lock"):
        aside = superseded(path)
        for entry in aside:
            remove_superseded(entry)
            print(f"removed  {_contents(entry)}")
    print(_superseded("removed", aside))


def _contents(entry: Superseded) -> str:
    return f"{shown(str(entry.path))}  {plural(entry.checkpoints, 'checkpoint')}, {size(entry.size)}"


def _superseded(done: str, aside: list[Superseded]) -> str:
    count, total = sum(entry.checkpoints for entry in aside), sum(entry.size for entry in aside)
    return f"superseded: {plural(count, 'checkpoint')} {done}, {size(total)}" if aside else "superseded: nothing"


def _delete(path: Path, name: str, policy: Retention) -> None:
    store = Store(path, name)
    with store.lock():
        entries = {entry.path: entry for entry in store.entries()}
        removed = [entries[path] for path in store.prune(policy)]
    lines_out(f"removed  {shown(str(entry.path))}" for entry in removed)
    print(_summary("removed", removed) if removed else "all stay")


def _run_name(entries: list[Checkpoint], options: argparse.Namespace) -> str:
    runs = sorted({entry.manifest.run for entry in entries})
    if options.name in runs:
        return str(options.name)
    if options.name is None and len(runs) == 1:
        return runs[0]
    there = f"it holds {', '.join(runs)}" if runs else "it holds no sound checkpoint"
    raise CheckpointError(f"which run in {options.root}? {there}" + ("; give --name" if len(runs) > 1 else ""))


def _show(found: Plan, policy: Retention) -> None:
    decided = [(entry, f"stays: {why}") for entry, why in found.kept] + [(entry, "goes") for entry in found.removed]
    decided.sort(key=lambda pair: (pair[0].iteration, pair[0].micro_step, pair[0].path.name))
    rows = [["iteration", "epoch", policy.monitor or "", "size", "decision", "folder"]]
    for entry, decision in decided:
        value = metrics_of(entry.record).get(policy.monitor or "")
        cells = [str(entry.iteration), str(entry.epoch), "" if value is None else number(value)]
        rows.append([*cells, size(_bytes(entry)), decision, shown(entry.path.name)])
    if policy.monitor is None:
        rows = [[*row[:2], *row[3:]] for row in rows]
    lines_out(table(rows, right=range(len(rows[0]) - 2)))
    lines_out(f"left alone: {shown(one_line(item.reason))}" for item in found.spared)


def _summary(done: str, entries: list[Checkpoint]) -> str:
    return f"{plural(len(entries), 'checkpoint')} {done}, {size(sum(map(_bytes, entries)))}"


def _bytes(entry: Checkpoint) -> int:
    return sum(file.size for file in entry.manifest.files.values())
