"""What has been changed in an experiment since its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import OS, Checkpoint
from ..checkpoint.listing import survey
from ..errors import CheckpointError
from . import toml
from .spec import Experiment

RECORD = "experiment"
"""Under this name the text of an experiment is in the record of its checkpoints."""

_FREE = ("run", "valid", "test", "sinks", "observers", "discover", "sweep")
"""Sections that may change: they decide no bit of the training, or `helios_fn.run` looks after them."""
_FREE_OF_DATA = ("workers", "prefetch", "pin_memory")


def changes(experiment: Experiment) -> list[str]:
    """A sentence for each key that decides bits and differs from the newest checkpoint in the experiment's root."""
    root = experiment.run.root
    if root is None or not (Path(root) / "checkpoints").is_dir():
        return []
    entries = [entry for _, entry in survey(OS, Path(root) / "checkpoints") if isinstance(entry, Checkpoint)]
    own = [entry for entry in entries if entry.manifest.run == experiment.run.name]
    newest = max(own, key=lambda entry: (entry.iteration, entry.micro_step), default=None)
    text = None if newest is None else newest.record.get(RECORD)
    if newest is None or not isinstance(text, str):
        return []
    try:
        before = dict(_deciding(toml.parse(text, str(newest.path))))
    except ValueError as error:
        raise CheckpointError(f"the experiment of {newest.path} cannot be read: {error}") from error
    now = dict(_deciding(toml.parse(experiment.dumps(), "")))
    return [
        f"{key} {_was(before, key)} when {newest.path.name} was written and {_is(now, key)} now"
        for key in sorted({*before, *now})
        if before.get(key, ...) != now.get(key, ...)
    ]


def _deciding(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that decide bits, with dots, and their values."""
    for key, value in table.items():
        free = _FREE if not prefix else _FREE_OF_DATA if prefix == "data." else ()
        if key in free:
            continue
        if isinstance(value, Mapping):
            yield from _deciding(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _was(table: Mapping[str, Any], key: str) -> str:
    return f"was {toml.value_text(table[key])}" if key in table else "was not set"


def _is(table: Mapping[str, Any], key: str) -> str:
    return f"is {toml.value_text(table[key])}" if key in table else "is not set"
