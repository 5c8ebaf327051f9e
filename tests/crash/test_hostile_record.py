"""Whatever the record of a sound checkpoint says, a run that resumes from it goes on or refuses, and writes at home."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helios_fn as hf
from helios_fn.checkpoint import Store
from helios_fn.errors import CheckpointError
from helios_fn.state import OUTPUT_ONLY

from ..jobs import Case, build
from .tally import Finding, Outcome, Trial

CASE = Case(total=2, samples=6, checkpoint_every=hf.Every(1, "iteration"))
HOME = re.compile(r"lock|(checkpoints|superseded|damaged)(/.*)?|logs(/[A-Za-z0-9][\w.-]*(/.*)?)?", re.DOTALL)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for part in path[:-1]:
            record = record[part]
        record[path[-1]] = value

    return change


FOLDERS = ["..", ".", "", "/tmp/evil", "../../evil", "a/b", "a\0b", "a\nb", "x" * 300, "-rf", 5, None, ["a"]]
VALUES: list[Any] = [5, "x", [1], None, {"a": {"b": [1]}}]
MARKS: list[Any] = [5, -1, "x", [1], {"size": -1}, {"size": 2**62}, {"files": {"../../x": 5}, "iteration": 1}]
RECORDS = {
    **{f"log_dir {value!r:.20}": put("log_dir", value=value) for value in FOLDERS},
    **{
        f"{name} {value!r}": put(name, value=value)
        for name in ("geometry", "environment", "config", "sinks", "validation")
        for value in VALUES
    },
    **{
        f"mark of {sink} {mark!r}": put("sinks", sink, value=mark) for sink in ("rows", "tensorboard") for mark in MARKS
    },
    "nothing": lambda record: record.clear(),
    "much": put("more", value=["x" * 1000] * 5000),
    "deep": put("more", value=json.loads("[" * 200 + "]" * 200)),
    "huge numbers": put("more", value=[10**900, 1e308, float("inf")]),
}


def run(root: Path, total: int) -> None:
    job = build(dataclasses.replace(CASE, total=total))
    cfg = dataclasses.replace(job.cfg, root=str(root))
    sinks = [hf.sinks.JsonLines(name="rows"), hf.sinks.TextLog(), hf.sinks.TensorBoard(name="tensorboard")]
    hf.run(job.step, job.state, job.loader(), cfg, sinks=sinks, **job.keywords)


def forge_record(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the newest checkpoint again, with the same state and another record."""
    store = Store(root, "run")
    newest = store.newest()
    assert newest is not None
    record = copy.deepcopy(dict(newest.record))
    change(record)
    state = store.load(newest, build(CASE).state, free=OUTPUT_ONLY)
    counts = {"epoch": newest.epoch, "iteration": newest.iteration, "micro_step": newest.micro_step}
    store.save(state, record=record, metadata=newest.manifest.metadata, free=OUTPUT_ONLY, **counts)


def check(memory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    root = memory / "above" / "root"
    run(root, 2)
    forge_record(root, change)
    with Trial("hostile record", Outcome.UNHARMED) as trial:
        try:
            run(root, 3)
        except (CheckpointError, ValueError) as error:  # a mark that its sink does not know is a wrong argument
            if len(str(error)) > 4000:
                raise Finding(Outcome.UNCLEAR, f"an error of {len(str(error))} characters") from None
            trial.outcome = Outcome.REJECTED
        strays = [path for path in memory.rglob("*") if not is_at_home(path, root)]
        if strays:
            raise Finding(Outcome.UNCLEAR, f"written where it does not belong: {strays}")


def is_at_home(path: Path, root: Path) -> bool:
    """Whether a run may have made a path; logs lie in a folder of their own."""
    if not path.is_relative_to(root):
        return path in root.parents
    home = path == root or HOME.fullmatch(str(path.relative_to(root))) is not None
    return home and (path.parent != root / "logs" or path.is_dir())


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "helios_fn")


QUICK = [name for number, name in enumerate(RECORDS) if number % 8 == 0]


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_record_leads_nowhere(memory: Path, name: str) -> None:
    """Some of them."""
    check(memory, RECORDS[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in RECORDS if name not in QUICK])
def test_every_hostile_record_leads_nowhere(memory: Path, name: str) -> None:
    """The others."""
    check(memory, RECORDS[name])
