"""Faults in the user's own code are named, by law and by cause; see `tests.laws.user_faults` for the table."""

from __future__ import annotations

import time

import pytest

import helios_fn as hf
from helios_fn.testing import LawBroken, processes

from ..forked import run
from .user_faults import FAULTS, Fault

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
