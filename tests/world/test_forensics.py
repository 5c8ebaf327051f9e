"""Fingerprints and replays of several processes are those of one."""

from __future__ import annotations

from pathlib import Path

import helios_fn as hf
from helios_fn.forensics import compare, replay

from ..unit.forensic import shared, train


def trained(root: str) -> int:
    """Train in a root; returns the rank."""
    train(Path(root), shared())
    return hf.distributed.connect().rank


def replayed(root: str) -> tuple[int, bool | None, str]:
    """An iteration again: how many micro-batches this process had, whether all is as recorded, and the digest."""
    found = replay(root, 3, shared())
    assert found.digest is not None
    return len(found.batch.items), found.agrees, found.digest


def test_the_fingerprints_of_two_processes_are_those_of_one(tmp_path, two):
    """Of all micro-batches, whichever process handled them, and of the state."""
    train(tmp_path / "one", shared())
    two.run(trained, str(tmp_path / "two"))
    found = compare(tmp_path / "one", tmp_path / "two")
    assert found.different is None
    assert found.equal == (10, "fingerprint")
    prints = found.right.fingerprints[1]
    assert len({path.partition("[")[0] for path in prints.batch}) == 4
    assert ("processes", 1, 2) in found.facts


def test_two_processes_replay_what_one_has_recorded(tmp_path, two):
    """With half of the micro-batches each, and the same bits."""
    train(tmp_path, shared())
    (mine, agrees, digest), (theirs, _, other) = two.run(replayed, str(tmp_path))
    assert (mine, theirs, agrees) == (2, 2, True)
    assert digest == other == replay(tmp_path, 3, shared()).digest
