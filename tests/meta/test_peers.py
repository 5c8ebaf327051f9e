"""The trials of other training loops judge rightly and survive what they provoke. What they find is not tested."""

from __future__ import annotations

import importlib
import os
import signal
import time

import pytest
import torch

from bench.peers import job, process, report, trials
from bench.peers.__main__ import ADAPTERS
from bench.peers.leg import Leg, Micro, Record
from bench.peers.verdict import Verdict, judge

MICROS = [Micro((2 * i, 2 * i + 1), f"bytes {i}") for i in range(6)]
FINAL = {"parameters": "p", "buffers": "b", "moments": "m"}
ALONE = Record(MICROS, FINAL)


def other_bytes(micros: list[Micro]) -> list[Micro]:
    return [micro._replace(bytes="other") for micro in micros]


@pytest.mark.parametrize("start", range(5))
def test_a_resume_from_any_checkpoint_before_the_kill_is_exact(start):
    """What came after the checkpoint comes again."""
    verdict = judge(ALONE, MICROS[:4], Record(MICROS[start:], FINAL), 4)
    assert verdict == Verdict(True, True, True, 4 - start)


@pytest.mark.parametrize(
    ("second", "exact", "why"),
    [
        (Record([], {}, "OSError: gone"), (False, False, False), "cannot go on: OSError: gone"),
        (Record(MICROS[5:], FINAL), (False, False, True), "goes on at another place than the one saved"),
        (Record(MICROS[3:5], FINAL), (False, False, True), "goes on in the right place, and ends too early"),
        (
            Record([*MICROS[3:], MICROS[0]], FINAL),
            (False, False, True),
            "goes on in the right place, and ends too late",
        ),
        (Record([MICROS[3], MICROS[0], MICROS[4]], FINAL), (False, False, True), "and later leaves the order"),
        (Record([], FINAL), (False, False, True), "trains on nothing more"),
        (Record([Micro((7, 0), "")] * 3, FINAL), (False, False, True), "in an order that the run alone never has"),
        (Record(other_bytes(MICROS[3:]), FINAL), (True, False, True), "the same samples, augmented differently"),
        (Record(MICROS[3:], FINAL | {"moments": "x"}), (True, True, False), "the same batches, but other moments"),
    ],
)
def test_a_resume_that_differs_is_told_by_what_differs_first(second, exact, why):
    verdict = judge(ALONE, MICROS[:4], second, 3)
    assert verdict[:3] == exact
    assert why in verdict.why


def test_a_first_leg_that_differs_is_not_exact():
    """Whatever the second one does."""
    second = Record(MICROS[4:], FINAL)
    assert not judge(ALONE, other_bytes(MICROS[:4]), second, 4).batches
    assert not judge(ALONE, MICROS[1:5], second, 4).order


def test_checkpoints_fall_in_the_middle_and_on_the_end_of_epochs():
    """And one kill comes before there is any, one right after each."""
    assert {trials.place(kill) for kill in trials.EVERYWHERE} == set(report.PLACES)
    assert {trials.place(kill) for kill in trials.QUICK} == set(report.PLACES)
    right_after = {kill for kill in trials.EVERYWHERE if kill % trials.SPACING == 0}
    assert {trials.place(kill) for kill in right_after} == {"mid-epoch", "epoch's end"}
    assert job.SAMPLES % job.BATCH_SIZE
    assert job.BATCHES_PER_EPOCH % job.ACCUMULATION == 0  # so that no library updates early at an epoch's end


def pretend(leg: Leg) -> job.Final:
    """A loop whose checkpoint is the number of micro-batches, in a file."""
    path = leg.root / "count"
    start = int(path.read_text()) if path.exists() else 0
    for index in range(start, 6):
        value = torch.full((1,), float(index))
        leg.take(torch.tensor([index]), value, value)
        path.write_text(str(index + 1))
    return {"parameters": {"w": torch.ones(1)}, "buffers": {}, "moments": {}}


def test_a_leg_is_killed_where_it_was_to_be_and_the_next_one_resumes(tmp_path):
    """By a real signal, after the micro-batch was trained on and saved."""
    alone = process.run_leg(pretend, tmp_path / "alone", 0)
    first = process.run_leg(pretend, tmp_path / "run", 0, kill_after=4)
    assert [micro.ids for micro in first.micros] == [(0,), (1,), (2,), (3,)]
    assert (first.final, first.error) == ({}, "")
    second = process.run_leg(pretend, tmp_path / "run", 0)
    assert judge(alone, first.micros, second, 4) == Verdict(True, True, True)


def fails(leg: Leg) -> job.Final:
    try:
        raise KeyError("snapshot")
    except KeyError:
        raise RuntimeError("no loader\nand more") from None


def dies(leg: Leg) -> job.Final:
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


def hangs(leg: Leg) -> job.Final:
    if os.fork() == 0:
        time.sleep(60)
    (leg.root / "started").touch()
    time.sleep(60)
    return {}


@pytest.mark.parametrize(
    ("loop", "timeout", "why"),
    [
        (fails, 60.0, "RuntimeError: no loader (after KeyError: 'snapshot')"),
        (dies, 60.0, "ended by itself with status 15"),
        (hangs, 0.5, "no end after 0.5 seconds"),
    ],
)
def test_a_leg_that_does_not_end_well_is_a_record_with_an_error(tmp_path, loop, timeout, why):
    """Not an end of the trials."""
    assert process.run_leg(loop, tmp_path / "run", 0, timeout=timeout).error == why


def findings(*verdicts: Verdict, **fields: str) -> trials.Findings:
    found = [trials.Trial(4 + i, 0, 2 * (i % 2), verdict) for i, verdict in enumerate(verdicts)]
    return trials.Findings("peer", "Peer", "does what it can", True, found, **fields)


def test_the_report_counts_what_is_exact_and_tells_why_not():
    good, bad = Verdict(True, True, True, 1), Verdict(True, False, False, 2, "the same samples, augmented differently")
    missing = findings(error="ModuleNotFoundError: No module named 'peer'")
    text = report.report([findings(good, bad, bad), missing], "torch 1.", trials.EVERYWHERE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| Peer")]
    assert rows[0] == ["Peer", "3", "3", "1", "1", "1.7", "yes"]
    assert rows[1][1].startswith("none: ModuleNotFoundError")
    assert "2 times the same samples, augmented differently (workers 0 -> 2, 0 -> 0; mid-epoch)" in text
    assert "after every micro-batch" in text


def test_findings_survive_the_way_to_another_process():
    found = findings(Verdict(True, True, False, 1, "why"), notes="a stand-in")
    assert trials.Findings.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_imports_without_its_library_and_cites_its_documentation(name):
    adapter = importlib.import_module(f"bench.peers.adapters.{name}")
    assert adapter.TITLE
    assert adapter.RESUME
    assert callable(adapter.prepare)
    assert callable(adapter.train)
    assert "https://" in adapter.__doc__ or "README" in adapter.__doc__
