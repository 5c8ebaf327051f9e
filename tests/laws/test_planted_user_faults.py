"""Faults in the user's own code are named, by law and by cause, and correct jobs are not accused.

The tables are `tests.laws.user_faults` and `tests.laws.user_jobs`.
"""

from __future__ import annotations

import time

import pytest

import helios_fn as hf
from helios_fn.testing import LawBroken, processes

from ..forked import run
from .user_faults import FAULTS, Fault
from .user_jobs import JOBS
from .user_laws import laws

WITHIN = [fault for fault in FAULTS if not fault.apart]


def verdict(fault: Fault) -> str:
    """What the law says; empty if it finds nothing."""
    try:
        fault.check()
    except (LawBroken, hf.PurityError) as error:
        return f"{error}"
    return ""


@pytest.mark.parametrize("fault", WITHIN, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_planted_fault_is_named_with_its_cause(fault: Fault, monkeypatch):
    """The law breaks, and its message has the words that lead to the fault."""
    monkeypatch.setattr(processes.subprocess, "run", run)
    told = verdict(fault)
    assert told, f"{fault.law} found nothing"
    assert [word for word in fault.words if word not in told] == [], told


@pytest.mark.soak
def test_the_table_of_planted_faults(capsys):
    """All faults, with real processes where they need them: at least nine of ten are named with their cause."""
    lines, named = [], 0
    for fault in FAULTS:
        begun = time.perf_counter()
        told = verdict(fault)
        missing = [word for word in fault.words if word not in told]
        named += bool(told) and not missing
        outcome = "not found" if not told else f"found, without {missing}" if missing else "law and cause"
        lines.append(f"{fault.name:55} {fault.law:18} {outcome:16} {time.perf_counter() - begun:6.1f} s")
    with capsys.disabled():
        print("\n" + "\n".join(lines) + f"\n{named} of {len(FAULTS)} named with law and cause")
    assert named >= 0.9 * len(FAULTS)


@pytest.mark.soak
def test_the_table_of_correct_jobs(capsys):
    """All jobs under all laws that say something about them, in the forms that look hardest: none is accused."""
    with capsys.disabled():
        print()
        accused = {name: verdicts for name in JOBS if (verdicts := accusations(name))}
        print(f"{len(accused)} of {len(JOBS)} correct jobs accused")
    assert not accused


def accusations(name: str) -> dict[str, str]:
    """Print what was checked of one job, and return the verdicts of the laws that accuse it."""
    begun, verdicts, checks = time.perf_counter(), {}, laws(name)
    for law, check in checks.items():
        try:
            check()
        except Exception as error:
            verdicts[law] = f"{type(error).__name__}: {error}"
    outcome = "not accused" if not verdicts else f"ACCUSED by {', '.join(verdicts)}"
    print(f"{name:38} {outcome:12} {time.perf_counter() - begun:6.1f} s  {' '.join(checks)}", flush=True)
    return verdicts
