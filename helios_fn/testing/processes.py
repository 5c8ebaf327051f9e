"""The law of resumption over real processes: what a process keeps to itself is lost between two legs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..types import Reason
from .compare import assert_same_run
from .folders import temporary_folder
from .interrupt import Stop, Stops, schedules, usual_stops
from .look import closer_look
from .spec import load_job, split_spec
from .trace import Trace, logged_rows
from .verdicts import JobFailed, LawBroken

_USUAL_STOPS = 4


def check_resume_processes(spec: str, *, stops: Stops | None = None) -> None:
    """Check that a run stopped anywhere and resumed by a fresh process equals the run that never stopped.

    The law of `check_resume`, with a Python process for every part of a run, and SIGKILL for a crash.
    Only so is it seen when a job keeps something in its process, such as a normaliser made from the
    first batch that it sees. It takes the time to start Python and torch for each part; runs are in
    temporary folders, and the job's own root is not touched.

    Args:
        spec: ``"module:function"``; the function takes no argument and returns a `Job`. It must be
            importable in a fresh process that has this one's ``sys.path`` and working directory.
        stops: as for `check_resume`. Default: one run with four stops, one of each kind.

    Raises:
        LawBroken: a resumed run differs, or fails; says where first, and the likely causes.
        JobFailed: the job fails without any interruption; has the traceback.
        ValueError: ``spec`` is not of this form, or a stop is outside the run.
    """
    split_spec(spec)
    whole = _run(spec, [])
    last = len(whole.batches)
    for schedule in schedules(_usual_schedules if stops is None else stops, last):
        points = ", ".join(map(str, schedule))
        what = f"a run resumed by fresh processes, with {points}, differs from one that never stopped"
        try:
            assert_same_run(whole, _run(spec, schedule), what)
        except LawBroken as error:
            with closer_look(load_job(spec)):  # here, in this process
                raise error from None


def _usual_schedules(last: int) -> list[list[Stop]]:
    usual = usual_stops(last, _USUAL_STOPS)
    return [usual] if usual else []


def _run(spec: str, schedule: list[Stop]) -> Trace:
    """Run a job to its end, in a process of its own after each stop."""
    trace = Trace()
    with temporary_folder() as folder:
        root = Path(folder, "root")
        for leg, stop in enumerate([*schedule, None]):
            place = Path(folder, f"leg-{leg}")
            place.mkdir()
            code = _spawn(spec, root, place, 1 + leg, stop)
            killed = stop is not None and stop.kind == "crash" and code < 0
            _take_in(place, trace, code if not killed else 0, schedule[:leg])
        if trace.reason is None:
            raise JobFailed("a signal from outside stopped the job before its end")
        trace.rows = logged_rows(root)
    return trace


def _spawn(spec: str, root: Path, place: Path, ambient: int, stop: Stop | None) -> int:
    command = [sys.executable, "-m", "helios_fn.testing.leg", spec, str(root), str(place / "journal")]
    command += ["--ambient", str(ambient)]
    # By default each process has another seed; so that a set's order that matters is found each time, not now and then.
    hashing = {"PYTHONHASHSEED": str(ambient)}
    if stop is not None:
        command += ["--iteration", str(stop.iteration), "--kind", stop.kind]
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    # Into a file, not a pipe: loader workers that outlive a killed process would keep a pipe open.
    with Path(place, "output").open("wb") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **hashing},
            check=False,
        )
    return done.returncode


def _take_in(place: Path, trace: Trace, code: int, before: list[Stop]) -> None:
    """Add what a process has noted to the trace.

    Raises:
        JobFailed, LawBroken: it failed, without or only with an interruption before.
    """
    journal = place / "journal"
    lines: list[dict[str, Any]] = []
    if journal.exists():
        lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "start" in line:
            trace.note_start(line["start"])
        elif "batch" in line:
            trace.note_batch(line["iteration"], line["batch"])
        elif "metrics" in line:
            trace.note_metrics(line["iteration"], line["metrics"])
        elif "reason" in line:
            trace.reason, trace.final = Reason[line["reason"]], line["final"]
        elif "failed" in line:
            raise _failure(line["failed"], line["impure"], before)
    if code != 0:
        told = Path(place, "output").read_text(encoding="utf-8", errors="replace")[-4000:].strip()
        raise _failure(f"its process ended with status {code}:\n{told}", False, before)


def _failure(report: str, impure: bool, before: list[Stop]) -> Exception:
    if impure:
        return LawBroken(f"the step is not pure:\n{report}")
    if before:
        points = ", ".join(map(str, before))
        return LawBroken(
            f"a run that was interrupted ({points}) fails when it is resumed; without it does not:\n{report}"
        )
    return JobFailed(f"the job itself failed, without any interruption:\n{report}")
