"""A profile shows what it says and changes no bit."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn.observers import Profile


def train(root, total, *observers, **changes):
    def loss_fn(params, buffers, batch, key):
        noise = torch.randn(2)
        return (params["w"] * (batch[0] + noise)).square().mean(), hf.Aux(weight=len(batch[0]))

    optimizer = hf.optim.adamw(1e-2)
    cfg = hf.RunConfig(unit="iteration", total=total, root=root, progress=False, **changes)
    state = hf.init_state({"w": torch.ones(2)}, optimizer)
    loader = hf.Loader(TensorDataset(torch.arange(40.0).reshape(20, 2)), 8)
    return hf.run(hf.make_step(loss_fn, optimizer), state, loader, cfg, observers=observers).state


def spans(path):
    events = json.loads(path.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def test_the_iterations_asked_for_are_recorded_and_no_bit_changes(tmp_path):
    """A trace and a table, named by the iterations; the state is that of a run without."""
    plain = train(tmp_path / "plain", 7)
    profiled = train(tmp_path / "profiled", 7, Profile(wait=2, warmup=1, active=3), checkpoint_every=1)
    assert hf.tree.equal(plain, profiled)
    (folder,) = (tmp_path / "profiled").glob("logs/*/profile")
    assert sorted(path.name for path in folder.iterdir()) == ["iterations_4_to_6.json", "iterations_4_to_6.txt"]
    shown = spans(folder / "iterations_4_to_6.json")
    assert shown.count("step") == 3
    assert {"data_wait", "checkpoint"} <= {*shown}
    assert "aten::" in (folder / "iterations_4_to_6.txt").read_text()


@pytest.mark.parametrize(("total", "names"), [(5, ["iterations_4_to_5"]), (3, []), (2, [])])
def test_a_run_that_ends_before_leaves_what_there_is(tmp_path, total, names):
    """Also nothing, and no profiler that goes on."""
    train(None, total, Profile(wait=2, warmup=1, active=3, path=tmp_path / "profile"))
    assert sorted(path.stem for path in tmp_path.glob("profile/*.json")) == names
    train(None, 4, Profile(wait=0, warmup=1, active=1, path=tmp_path / "next"))
    assert [path.stem for path in tmp_path.glob("next/*.json")] == ["iterations_2_to_2"]


def test_states_may_still_be_donated():
    """An observer that keeps no state stands in nobody's way, one that might does."""

    class Keeps(hf.Observer):
        def on_iteration(self, state):
            """May keep it."""

    from helios_fn.driver.outlets import Outlets

    assert not Outlets([], [Profile(), hf.sinks.Progress()]).shows_states
    assert Outlets([], [Profile(), Keeps()]).shows_states


def test_a_number_that_is_none_and_a_missing_folder_are_refused():
    """At once, or when the run starts."""
    with pytest.raises(ValueError, match="active must be an integer of at least 1, got 0"):
        Profile(active=0)
    with pytest.raises(hf.RunFailed, match="give Profile a path, or the run a root"):
        train(None, 2, Profile())
