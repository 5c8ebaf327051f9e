"""Fingerprints and replays of several processes are those of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import helios_fn as hf
from helios_fn.forensics import compare, replay

from ..unit.forensic import shared, train


def trained(root: str) -> int:
    """Train in a root; returns the rank."""
    train(Path(root), shared())
    return hf.distributed.connect().rank


def trained_with_sinks_of_rank_0(root: str) -> str:
    """Train with sinks on rank 0 alone, one of which looks at states; returns the digest of the last state."""
    made = shared()
    rank = hf.distributed.connect().rank
    looking = hf.sinks.TensorBoard(histograms={"weights": lambda state: state.params}, every=hf.Every(3, "iteration"))
    cfg = dataclasses.replace(
        made.cfg, root=root, log_every=2, checkpoint_every=4, fingerprint_every=2, collective_timeout=20.0
    )
    sinks = [] if rank else [hf.sinks.JsonLines(), looking]
    return hf.tree.digest(hf.run(made.step, made.state, made.new_loader(), cfg, sinks=sinks).state)


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


def test_sinks_may_be_handed_to_rank_0_alone(tmp_path, two):
    """It is the one that writes; the others do their part of the fingerprints, and no bit changes."""
    train(tmp_path / "one", shared())
    mine, theirs = two.run(trained_with_sinks_of_rank_0, str(tmp_path / "two"))
    found = compare(tmp_path / "one", tmp_path / "two")
    assert found.different is None
    assert sorted(found.right.fingerprints) == [2, 4, 6, 8, 10]
    assert mine == theirs


def test_two_processes_replay_what_one_has_recorded(tmp_path, two):
    """With half of the micro-batches each, and the same bits."""
    train(tmp_path, shared())
    (mine, agrees, digest), (theirs, _, other) = two.run(replayed, str(tmp_path))
    assert (mine, theirs, agrees) == (2, 2, True)
    assert digest == other == replay(tmp_path, 3, shared()).digest
