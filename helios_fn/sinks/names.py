"""Names and places of logs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config import NAME_PATTERN
from ..types import RunInfo

# Not strftime("%b"), which speaks the language of the machine.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TIME_SPLIT = ("data_wait", "step", "validation", "checkpoint", "other")
"""Where time goes, as the names in ``Row.observed``."""
_METHODS = ("open", "write", "flush", "close")


def log_name(run_name: str, now: datetime, taken: Collection[str] = ()) -> str:
    """The name of a new log folder: ``<run-name>_<MonthDay_Hour-Minute-Second>``.

    For example ``digits_Nov21_14-03-59``; where ``taken`` has it already, ``digits_Nov21_14-03-59_2``.
    """
    base = f"{run_name}_{_MONTHS[now.month - 1]}{now.day:02}_{now:%H-%M-%S}"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def check_name(name: Any) -> str:
    """A sink's name, which also names its file.

    Raises:
        ValueError: ``name`` cannot name a file.
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"name={name!r} cannot name a log: use 1 to 64 letters, digits, '_', '.' and '-', "
            "starting with a letter or digit"
        )
    return name


def loss_first(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Metrics in the order in which people read them: the loss, then the others by name."""
    return sorted(metrics.items(), key=lambda item: (item[0] != "loss", item[0]))


def locate(path: Path | None, info: RunInfo, sink: str, default: str) -> Path:
    """Where a sink writes: the user's path, else ``default`` in the run's log folder.

    Raises:
        ValueError: there is neither.
    """
    if path is not None:
        return path
    if info.log_dir is None:
        raise ValueError(f"sink {sink!r} has no place to write to: give it a path, or give the run a root")
    return info.log_dir / default


def check_sinks(sinks: Iterable[Any]) -> None:
    """Refuse what cannot work as the sinks of one run.

    Raises:
        TypeError: one of them is not a sink (a class instead of its instance is the usual slip).
        ValueError: two have the same name or the same path. A checkpoint tells them apart by name.
    """
    names: set[str] = set()
    paths: set[Path] = set()
    for sink in sinks:
        if isinstance(sink, type):
            raise TypeError(f"sinks takes instances, got the class {sink.__name__}: write {sink.__name__}()")
        lacking = [method for method in _METHODS if not callable(getattr(sink, method, None))]
        if lacking or not isinstance(getattr(sink, "name", None), str):
            raise TypeError(f"{sink!r} is not a sink, it lacks {', '.join(lacking) or 'a name'}: see hf.Sink")
        if sink.name in names:
            raise ValueError(f"two sinks are named {sink.name!r}: give one of them another name=")
        names.add(sink.name)
        path = getattr(sink, "path", None)
        if isinstance(path, Path):
            if path.resolve() in paths:
                raise ValueError(
                    f"sink {sink.name!r} writes to {str(path)!r} as another sink does: give it its own path"
                )
            paths.add(path.resolve())
