"""Who is killed when: all trials of one library, in a process that has imported it.

    python -m bench.peers.trials NAME FOLDER [--quick]

writes ``FOLDER/NAME.json``. `bench.peers` runs it for every library.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .job import ACCUMULATION, BATCHES_PER_EPOCH, CHECKPOINT_EVERY, MICRO_BATCHES
from .leg import Record, Train
from .process import run_leg
from .verdict import Verdict, judge

WORKERS = (0, 2)
EVERYWHERE = tuple(range(1, MICRO_BATCHES))
QUICK = (2, 4, 5, 8, 11, 16, 21)
SPACING = ACCUMULATION * CHECKPOINT_EVERY  # micro-batches from one checkpoint to the next


class Trial(NamedTuple):
    """One kill and one resume."""

    kill_after: int
    before: int
    after: int
    verdict: Verdict

    @property
    def place(self) -> str:
        """Where the checkpoint lies that a resume starts from."""
        return place(self.kill_after)


def place(kill_after: int) -> str:
    """Where the newest checkpoint lies if one is written as soon as it is due."""
    saved = kill_after // SPACING * SPACING
    if not saved:
        return "none yet"
    return "mid-epoch" if saved % BATCHES_PER_EPOCH else "epoch's end"


class Findings(NamedTuple):
    """Everything about one library.

    Attributes:
        name: of the adapter's module.
        title: as people know it.
        resume: what its documentation has one do, in a sentence.
        repeats: whether two runs that were left alone had the same bits, for each number of workers.
        trials: one for each kill.
        error: why there are none.
        notes: what a reader has to know.
        seconds: what it took.
    """

    name: str
    title: str
    resume: str
    repeats: bool
    trials: list[Trial]
    error: str = ""
    notes: str = ""
    seconds: float = 0.0

    def to_json(self) -> str:
        """Of plain lists."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """The inverse."""
        fields: dict[str, Any] = json.loads(text)
        fields["trials"] = [Trial(at, before, after, Verdict(*v)) for at, before, after, v in fields["trials"]]
        return cls(**fields)


def run(name: str, kills: Sequence[int], folder: Path) -> Findings:
    """All trials of the adapter of this name, with their files under ``folder``."""
    began = time.monotonic()
    torch.set_num_threads(1)  # no thread of this process may be missing in its forks
    importlib.import_module("torch._dynamo")  # which the first optimiser of a process imports, and that takes seconds
    adapter = importlib.import_module(f"bench.peers.adapters.{name}")
    notes = adapter.prepare()
    about = {"name": name, "title": adapter.TITLE, "resume": adapter.RESUME, "notes": notes}
    alone: dict[int, Record] = {}
    repeats = True
    for workers in WORKERS:
        runs = [run_leg(adapter.train, folder / f"alone{workers}{again}", workers) for again in "ab"]
        alone[workers] = runs[0]
        repeats = repeats and runs[0] == runs[1]
        if runs[0].error:
            return Findings(**about, repeats=False, trials=[], error=runs[0].error)
    trials = [
        trial
        for before in WORKERS
        for kill_after in kills
        for trial in _kill(adapter.train, alone[before], before, kill_after, folder)
    ]
    return Findings(**about, repeats=repeats, trials=trials, seconds=time.monotonic() - began)


def _kill(train: Train, alone: Record, before: int, kill_after: int, folder: Path) -> Iterator[Trial]:
    """Kill once, and resume what is on disk then with the same number of workers and with the other one."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    root, aside = scratch / "run", scratch / "aside"
    first = run_leg(train, root, before, kill_after)
    if first.error or len(first.micros) != kill_after:
        why = f"fails before the kill: {first.error or f'only {len(first.micros)} micro-batches'}"
        yield from (Trial(kill_after, before, after, Verdict(False, False, False, 0, why)) for after in WORKERS)
        return
    shutil.copytree(root, aside, symlinks=True)
    for after in WORKERS:
        shutil.rmtree(root)
        shutil.copytree(aside, root, symlinks=True)
        second = run_leg(train, root, after)
        yield Trial(kill_after, before, after, judge(alone, first.micros, second, kill_after // SPACING * SPACING))
    shutil.rmtree(scratch)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the module in bench/peers/adapters")
    parser.add_argument("folder", type=Path, help="where to write the findings")
    parser.add_argument("--quick", action="store_true", help="kill at a few places only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        findings = run(given.name, QUICK if given.quick else EVERYWHERE, Path(scratch))
    (given.folder / f"{given.name}.json").write_text(findings.to_json())


if __name__ == "__main__":
    main()
