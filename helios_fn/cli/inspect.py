"""``inspect``: what a checkpoint holds, or which checkpoints there are."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import OS, Checkpoint, Contents, open_contents
from ..checkpoint.listing import problem
from ..checkpoint.retention import metrics_of
from ..errors import CheckpointError
from ..text import lines_out, number, one_line, plural, shown, size, table
from ..types import Json
from .outline import outline
from .places import Found, found_in, is_checkpoint, place

_WIDTH = 110
_LABEL = 13
_MOST_METRICS = 3


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="show what a checkpoint holds, or list those of a root",
        description="Of a checkpoint: where it stands, versions, configuration, and the tree of its leaves. Of a root: "
        "its checkpoints. Manifests are checked, and the lengths of files; verify reads every byte.",
    )
    parser.add_argument("path", metavar="PATH", type=place, help="a checkpoint, a root, or a .safetensors file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show a checkpoint or a root."""
    path: Path = options.path
    if is_checkpoint(path) or path.is_file():
        return _show_one(open_contents(path))
    return _show_root(path, found_in(path))


def _show_one(contents: Contents) -> int:
    manifest, flaw = contents.manifest, None
    print(shown(str(contents.path)))
    if manifest is not None:
        flaw = problem(OS, Checkpoint(contents.path, manifest), in_full=False)
        record = manifest.record
        where = {"run": manifest.run, "epoch": manifest.epoch, "iteration": manifest.iteration}
        lines_out(_facts("position", {**where, "micro_step": manifest.micro_step}))
        lines_out(_facts("validation", {name: number(value) for name, value in metrics_of(record).items()}))
        lines_out(_facts("files", {name: size(entry.size) for name, entry in manifest.files.items()}))
        lines_out(_facts("versions", manifest.versions))
        for part in ("geometry", "environment", "config"):
            lines_out(_facts(part, record.get(part)))
        lines_out(_history(record.get("history")))
        told = ("geometry", "environment", "config", "experiment", "history", "validation")
        lines_out(_facts("record", {name: value for name, value in record.items() if name not in told}))
        lines_out(_text("experiment", record.get("experiment")))
    print()
    lines_out(outline(contents.structure))
    if flaw is not None:
        raise CheckpointError(flaw)
    return 0


def _history(entries: Any) -> list[str]:
    """The branches that led to a checkpoint, the oldest first, each with what it changed."""
    lines = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        digest = f", digest {str(entry['digest'])[:16]}" if entry.get("digest") else ""
        note = f": {entry['note']}" if entry.get("note") else ""
        where = f"run {entry.get('run')}, iteration {entry.get('iteration')} ({entry.get('checkpoint')}{digest})"
        lines.append(f"branch of {where}{note}")
        changes = entry.get("changes")
        for change in changes if isinstance(changes, list) else []:
            if isinstance(change, dict):
                name = change.get("fact", change.get("leaf"))
                lines.append(f"  {name}: {change.get('old')} -> {change.get('new')}")
    return [f"{'history' if at == 0 else '':{_LABEL}}{shown(line, _WIDTH)}" for at, line in enumerate(lines)]


def _facts(label: str, facts: Any) -> list[str]:
    text = ", ".join(f"{name}={value}" for name, value in _flat(facts)) if isinstance(facts, Mapping) else ""
    if not text:
        return []
    return textwrap.wrap(
        shown(text), _WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=" " * _LABEL, break_on_hyphens=False
    )


def _text(label: str, text: Any) -> list[str]:
    """The lines of a text, without the empty ones."""
    lines = [shown(line, _WIDTH - _LABEL) for line in text.splitlines() if line] if isinstance(text, str) else []
    return [f"{label if at == 0 else '':{_LABEL}}{line}" for at, line in enumerate(lines)]


def _flat(facts: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show_root(path: Path, found: list[Found]) -> int:
    entries = [entry for _, entry in found if isinstance(entry, Checkpoint)]
    metrics = _metrics(entries)
    rows = [["iteration", "epoch", *metrics, "size", "files", "checkpoint"]]
    bad = [f"{shown(one_line(str(entry)))}" for _, entry in found if isinstance(entry, CheckpointError)]
    for entry in entries:
        flaw = problem(OS, entry, in_full=False)
        if flaw is not None:
            bad.append(shown(one_line(flaw)))
        values = metrics_of(entry.record)
        cells = [str(entry.iteration), str(entry.epoch)]
        cells += [number(values[metric]) if metric in values else "" for metric in metrics]
        total = sum(file.size for file in entry.manifest.files.values())
        rows.append([*cells, size(total), "whole" if flaw is None else "DAMAGED", shown(entry.path.name)])
    if entries:
        lines_out(table(rows, right=range(len(rows[0]) - 2)))
    lines_out(f"DAMAGED  {reason}" for reason in bad)
    count = plural(len(found), "checkpoint")
    print(f"{count} in {shown(str(path))}, {len(bad)} damaged (by manifests and lengths; verify reads every byte)")
    return 1 if bad else 0


def _metrics(entries: list[Checkpoint]) -> list[str]:
    """The metrics to show, those that the run goes by first."""
    names = sorted({name for entry in entries for name in metrics_of(entry.record)})
    watched = []
    for part in ("retention", "early_stop"):
        for entry in entries:
            config = entry.record.get("config")
            monitor = config.get(part) if isinstance(config, dict) else None
            watched.append(monitor.get("monitor") if isinstance(monitor, dict) else None)
    first = [name for name in dict.fromkeys(watched) if name in names]
    return [str(name) for name in [*first, *(name for name in names if name not in first)]][:_MOST_METRICS]
