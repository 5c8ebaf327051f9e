"""A sharded checkpoint is whole or not there, and comes back for any number of processes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import helios_fn as hf
from helios_fn.checkpoint import Store, open_contents, restore, verify
from helios_fn.cli.main import main

from ..strategies import examples
from . import checkpoint_jobs as jobs
from .gloo import Group
from .jobs import Training, plain, start

TRAINING = Training("adamw", 4, (3, 4, 5, 2), average=0.9)
TREE = {"w": torch.arange(10.0).view(5, 2), "b": torch.arange(4.0), "n": 3, "plain": torch.ones(2, 3).t()}
DIMS = {"['w']": 0, "['b']": 0}


def entries(root: Path) -> list[str]:
    return sorted(os.listdir(root / "checkpoints"))


@pytest.mark.parametrize("rules", [("rows", "rows"), ("rows", "columns"), ("columns", "rows")])
def test_a_state_saved_by_four_comes_back_for_two_and_for_one(tmp_path, two, four, rules):
    """The same bits, however it is cut, and without any process group as whole tensors."""
    path, saved = four.run(jobs.save, str(tmp_path), TRAINING, 2, rules[0])[0]
    for group in (four, two):
        assert all(
            hf.tree.equal(found, saved) for found in group.run(jobs.resume, tmp_path, TRAINING, range(0), rules[1])
        )
    store, (state, _) = Store(tmp_path, "run"), start(TRAINING, sharded=False)
    alone = store.load(store.newest(), state, free=jobs.FREE)
    assert hf.tree.equal(plain(alone), saved)
    assert open_contents(path).digest() == hf.tree.digest(alone)


def test_a_state_saved_by_one_process_comes_back_sharded(tmp_path, two):
    """Each process cuts its own piece out."""
    state, _ = start(TRAINING, sharded=False)
    Store(tmp_path, "run").save(state, **jobs.facts(1))
    for found in two.run(jobs.resume, tmp_path, TRAINING, range(0)):
        assert hf.tree.equal(found, plain(state))


def test_stopping_and_resuming_changes_no_bit(tmp_path, two):
    """At the same number of processes."""
    _, whole = two.run(jobs.save, tmp_path / "whole", TRAINING, 4)[0]
    two.run(jobs.save, tmp_path / "cut", TRAINING, 2)
    assert hf.tree.equal(two.run(jobs.resume, tmp_path / "cut", TRAINING, range(2, 4))[0], whole)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int16, torch.bool)


@st.composite
def trees_with_dims(draw):
    tree, cut, again = {}, {}, {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
        bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        tree[str(number)] = bits.to(draw(st.sampled_from(DTYPES)))
        for dims in (cut, again):
            dim = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1)))
            dims[f"['{number}']"] = dim
    tree["shared"] = (torch.arange(4.0), 2.5, "text", None)
    return tree, cut, again


@settings(deadline=None, max_examples=examples(8))
@given(case=trees_with_dims())
def test_any_tensor_comes_back_however_it_was_cut(tmp_path_factory, two, four, case):
    """Any dtype, uneven pieces and pieces of nothing included; other leaves as they ever did."""
    tree, cut, again = case
    root = tmp_path_factory.mktemp("any")
    path = four.run(jobs.save_tree, root, tree, cut)[0]
    for found in two.run(jobs.load_tree, root, tree, again):
        assert hf.tree.equal(found, tree)
    assert open_contents(path).digest() == hf.tree.digest(tree)


def test_a_checkpoint_is_json_and_safetensors_of_which_each_piece_is_one_entry(tmp_path, two):
    """Nothing is pickled; other readers of safetensors see what lies where."""
    path = two.run(jobs.save_tree, tmp_path, TREE, DIMS)[0]
    shards = [f"shards-0000{rank}-of-00002.safetensors" for rank in range(2)]
    assert sorted(os.listdir(path)) == ["manifest.json", *shards, "state.json", "tensors.safetensors"]
    assert json.loads((path / "manifest.json").read_text())["format"] == 3
    assert set(json.loads((path / "state.json").read_text())) == {"entries", "shards", "structure"}
    with safe_open(path / shards[1], "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {  # noqa: SIM118 - no mapping
            "state['w']@3,0": [2, 2],
            "state['b']@2": [2],
        }


def test_a_flipped_bit_in_a_piece_is_noticed_by_name(tmp_path, two):
    """By whoever needs it and by whoever verifies; the checkpoint before is the newest then."""
    for iteration in (1, 2):
        path = two.run(jobs.save_tree, tmp_path, TREE, DIMS, iteration)[0]
    file = path / "shards-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(hf.CheckpointError, match=rf"{file.name} is damaged.*state\['w'\]@3,0|state\['b'\]@2"):
        verify(path)
    assert two.run(jobs.newest, tmp_path) == [1, 1]
    assert os.listdir(tmp_path / "damaged") == [path.name]


def test_a_lost_file_is_damage(tmp_path, two):
    """Of the only checkpoint: every process is told, and none starts afresh."""
    path = two.run(jobs.save_tree, tmp_path, TREE, DIMS)[0]
    (path / "shards-00000-of-00002.safetensors").unlink()
    for message in two.run(jobs.newest, tmp_path):
        assert "shards-00000-of-00002.safetensors is missing" in message


@pytest.mark.parametrize(("rank", "name"), [(1, "shards-00001"), (0, "state.json"), (0, "manifest.json")])
def test_if_one_process_fails_the_save_fails_on_all(tmp_path, two, rank, name):
    """With its rank and reason; the checkpoint before stays the newest, and nothing else is left."""
    before = two.run(jobs.save_tree, tmp_path, TREE, DIMS, 1)[0]
    for message in two.run(jobs.fail_to_save, tmp_path, TREE, DIMS, rank, name):
        assert message.startswith("CheckpointError: cannot save")
        assert f"rank {rank}: OSError: [Errno 28] No space left on device" in message
    assert entries(tmp_path) == [before.name]
    assert two.run(jobs.newest, tmp_path) == [1, 1]


@pytest.mark.parametrize(("rank", "name"), [(1, "shards-00001"), (0, "manifest.json")])
def test_a_process_that_dies_while_saving_leaves_the_checkpoint_before(tmp_path, rank, name):
    """The others hear of it; the next start finds a clean folder."""
    group = Group(2)
    try:
        before = group.run(jobs.save_tree, tmp_path, TREE, DIMS, 1)[0]
        outcomes = group.outcomes(jobs.fail_to_save, tmp_path, TREE, DIMS, rank, name, True)
    finally:
        group.close()
    assert outcomes[rank] == (False, None)
    assert outcomes[1 - rank][0]
    assert outcomes[1 - rank][1] != "saved"
    store = Store(tmp_path, "run")
    with store.lock():
        assert entries(tmp_path) == [before.name]
        assert store.newest().path == before


def test_a_save_of_a_state_that_changes_is_dropped(tmp_path, two):
    """Whichever process's part it is that changes."""
    for message in two.run(jobs.save_while_it_changes, tmp_path, TREE, DIMS):
        assert "rank 1: StateOverwritten" in message
        assert "was written to while it was being saved" in message
    assert entries(tmp_path) == []


def test_saving_the_same_again_keeps_the_folder_and_another_state_sets_it_aside(tmp_path, two):
    """As for any checkpoint."""
    path = two.run(jobs.save_tree, tmp_path, TREE, DIMS)[0]
    inode = path.stat().st_ino
    two.run(jobs.save_tree, tmp_path, TREE, DIMS)
    assert path.stat().st_ino == inode
    two.run(jobs.save_tree, tmp_path, {**TREE, "n": 4}, DIMS)
    assert path.stat().st_ino != inode
    assert os.listdir(tmp_path / "damaged") == [path.name]
    assert entries(tmp_path) == [path.name]


def test_what_is_no_sharded_state_is_refused(tmp_path, two):
    """A state without shards belongs into a `Store`, and a part of a sum nowhere."""
    assert all("no leaf of the state is sharded" in message for message in two.run(jobs.prepare, tmp_path, None))
    for message in two.run(jobs.prepare, tmp_path, {"a": torch.ones(2)}):
        assert "['a']: a sharded tensor (DTensor), of which this process has a part only" in message


def test_the_command_line_reads_sharded_checkpoints(tmp_path, two, capsys):
    """inspect, verify, digest, diff, export and prune, in one process."""
    paths = [str(two.run(jobs.save, tmp_path, TRAINING, iterations)[0][0]) for iterations in (1, 2, 3)]
    out = str(tmp_path / "weights.safetensors")
    for command in (["verify"], ["inspect"], ["digest"], ["diff", paths[2]], ["export", out]):
        assert main([command[0], paths[2], *command[1:]]) == 0
    said = capsys.readouterr().out
    assert re.search(r"first.weight +float32\[6, 3\] +72 B +in 2 pieces", said)
    assert "bit for bit" in said
    params = start(TRAINING, sharded=False)[0].params
    weights = restore(out, params, strict=False).tree
    assert hf.tree.equal(weights, restore(paths[2], params, only="params.*", rename={"params": ""}).tree)
    assert not hf.tree.equal(weights, params)
    assert main(["prune", str(tmp_path), "--last", "2", "--delete"]) == 0
    assert entries(tmp_path) == [Path(path).name for path in paths[1:]]
