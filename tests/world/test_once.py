"""What is done once per machine is done when anybody goes on."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from helios_fn.distributed import launch, once_per_node
from helios_fn.errors import LaunchFailed

from . import ranks


def test_alone_it_is_just_a_call():
    """With its arguments, and its errors."""
    seen = []
    assert once_per_node(lambda *args, **kwargs: seen.append((args, kwargs)), 1, word=2) is None
    assert seen == [((1,), {"word": 2})]
    with pytest.raises(ZeroDivisionError):
        once_per_node(lambda: 1 / 0)


def test_one_process_does_it_and_the_others_see_it_done_each_time(tmp_path):
    """A second call waits for its own work, not for that of the first."""
    assert launch(ranks.prepared, str(tmp_path), processes=3, timeout=60) == [[["0"], ["0", "1"]]] * 3
    assert {(tmp_path / turn).read_text() for turn in "01"} == {"0"}


def test_each_machine_has_its_own_and_all_wait_for_all(tmp_path):
    """Also when the machines have different numbers of processes."""
    assert launch(ranks.as_if_on_machines, str(tmp_path), (2, 1), processes=3, timeout=60) == [["0", "1"]] * 3
    assert [(tmp_path / machine).read_text() for machine in "01"] == ["0", "2"]


def test_if_it_fails_all_ranks_fail(tmp_path):
    """The one that did it raises what happened, the others say who failed and how."""
    with pytest.raises(LaunchFailed) as caught:
        launch(ranks.prepared, str(tmp_path), "badly", processes=3, timeout=60)
    assert str(caught.value).startswith("rank 0 of 3 raised OSError: no space left")
    for rank in (1, 2):
        assert "it failed on rank 0: OSError: no space left" in caught.value.failures[rank]


def test_it_may_take_longer_than_any_timeout():
    """The signs of life keep the others waiting."""
    assert launch(ranks.slowly_prepared, processes=2, timeout=60) == [0, 1]


def test_a_stopped_rank_is_noticed(tmp_path):
    """Without a sign of life the others give up, and say so."""
    with pytest.raises(LaunchFailed, match=r"rank 1 waited for .* 1 of 2 ranks are done, .* no sign of life for 0.3 s"):
        launch(ranks.never_prepared, str(tmp_path), processes=2, grace=0, timeout=60)


def test_it_needs_the_process_group():
    """A launched rank that has not connected is told to."""
    with pytest.raises(LaunchFailed, match=r"rank . of 2, and torch.distributed's default group is not there yet"):
        launch(ranks.not_connected, processes=2, timeout=60)


def test_a_group_of_unknown_machines_is_refused(monkeypatch):
    """Which ranks share a machine is in the environment only."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="has 2 ranks, but the environment tells of 1"):
        once_per_node(torch.ones, 1)
