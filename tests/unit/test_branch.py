"""Branches and overrides: changes that are said by name, checked, recorded, and exact afterwards."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import helios_fn as hf
from helios_fn.checkpoint import open_contents
from helios_fn.cli import main
from helios_fn.testing import Job, check_resume

from ..jobs import Case, build

LR = "opt_state.hyper.lr"


def job(root: Path | None, **changes) -> Job:
    """A job whose learning rate is a leaf of its state, over 11 points."""
    case = Case(augment="torch", total=6, **changes)
    made = build(case)
    cfg = dataclasses.replace(made.cfg, root=root, checkpoint_every=None if root is None else 2)
    model, params, buffers = hf.functional(lambda: torch.nn.Linear(3, 2), seed=case.seed)

    def loss_fn(params, buffers, batch, key):
        return torch.nn.functional.cross_entropy(model(params, buffers, batch[0])[0], batch[1])

    optimizer = hf.optim.tunable(hf.optim.adamw, lr=0.05)
    state = hf.init_state(params, optimizer, buffers=buffers, seed=case.seed)
    return Job(hf.make_step(loss_fn, optimizer), state, made.loader, cfg)


def run(made: Job, **cfg) -> hf.Result:
    return hf.run(made.step, made.state, made.new_loader(), dataclasses.replace(made.cfg, **cfg))


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A checkpoint in the middle of an epoch, at iteration 2 of a run of 6."""
    root = tmp_path_factory.mktemp("origin")
    run(job(root))
    return next((root / "checkpoints").glob("*_iter_2"))


def history(root: Path) -> list:
    return [open_contents(path).manifest.record.get("history") for path in sorted((root / "checkpoints").iterdir())]


class TestBranch:
    def test_it_changes_what_it_names_and_records_it(self, origin, tmp_path, capsys):
        """Batch size and learning rate; the history has old and new values, the origin and its digest."""
        changes = {"lift": ["data.*"], "override": {LR: 0.01}, "note": "too fast"}
        cfg = {"resume": hf.branch(origin, **changes)}
        result = run(job(tmp_path, batch_size=4), **cfg)
        assert result.state.opt_state.hyper["lr"].item() == 0.01
        assert result.state.counters.iteration == 6
        entries = history(tmp_path)
        assert all(entry == entries[0] for entry in entries)
        (entry,) = entries[0]
        assert (entry["run"], entry["iteration"], entry["note"]) == ("run", 2, "too fast")
        assert entry["digest"] == open_contents(origin).digest()
        changed = {change.get("fact") or change["leaf"]: (change["old"], change["new"]) for change in entry["changes"]}
        assert changed == {
            "data.batch_size": (3, 4),
            "data.batches_per_epoch": (4, 3),
            "cursor": ([0, 0, 2], [0, 1, 0]),
            LR: ("0.05", "0.01"),
        }
        first = open_contents(min((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name.split("_")[-1])))
        values = first.values()
        assert [values[f"cursor.{part}"] for part in ("phase", "epoch", "batch")] == [0, 1, 0]
        assert main(["inspect", str(next((tmp_path / "checkpoints").iterdir()))]) == 0
        shown = capsys.readouterr().out
        assert f"history      branch of run run, iteration 2 ({origin.name}, digest {entry['digest'][:16]})" in shown
        assert f"{LR}: 0.05 -> 0.01" in shown

    def test_a_branch_of_a_branch_has_both_in_its_history(self, origin, tmp_path):
        """The chain grows by one entry for each branch, also for one by a plain path."""
        run(job(tmp_path / "b"), resume=hf.branch(origin, override={LR: 0.01}))
        last = next((tmp_path / "b" / "checkpoints").glob("*_iter_4"))
        run(job(tmp_path / "c"), resume=last)
        assert [[entry["iteration"] for entry in entries] for entries in history(tmp_path / "c")] == [[2, 4]] * 2

    def test_a_branched_run_obeys_the_law_of_resumption(self, origin):
        """Stopped anywhere and run again by the same line, it ends in the same bits, batches and rows."""
        made = job(None, batch_size=4)
        cfg = dataclasses.replace(made.cfg, resume=hf.branch(origin, lift="data.*", override={LR: 0.01}))
        check_resume(made.step, made.state, made.loader, cfg)

    def test_without_changes_it_is_the_run_that_it_left(self, origin, tmp_path):
        """The same final state as the run that went on."""
        result = run(job(tmp_path), resume=hf.branch(origin))
        whole = open_contents(next(origin.parent.glob("*_iter_6")))
        assert hf.tree.digest(result.state) == whole.digest()

    def test_a_config_with_a_branch_can_be_hashed(self):
        """Like every other: equal ones alike, whatever they override."""
        first, second = (hf.RunConfig("epoch", 1, root="x", resume=hf.branch("a/b", override={LR: 1})) for _ in "ab")
        assert first == second
        assert hash(first) == hash(second)

    def test_a_lifted_seed_takes_over(self, origin, tmp_path):
        """From the branch on, all noise and the order come from the new seed."""
        made = job(tmp_path, seed=1)
        result = run(made, resume=hf.branch(origin, lift="seed"))
        assert torch.equal(result.state.key, made.state.key)

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"lift": ["data.batch_size"]}, hf.ResumeRefused, r"data.batches_per_epoch: saved 4, now 3.*hf.branch"),
            ({"lift": ["data.batchsize", "data.*"]}, ValueError, "did you mean 'data.batch_size'"),
            ({"lift": "data.*", "override": {"opt_state.hyper.rl": 1.0}}, ValueError, f"did you mean '{LR}'"),
            ({"lift": "data.*", "override": {"cursor.batch": 1}}, ValueError, "the run itself keeps it"),
            ({"lift": "data.*", "override": {"first_bad": 1}}, ValueError, "the run itself keeps it"),
        ],
    )
    def test_what_it_does_not_name_is_refused_as_ever(self, origin, tmp_path, changes, error, words):
        """And what it names must exist; nothing has been saved then."""
        with pytest.raises(error, match=f"(?s){words}"):
            run(job(tmp_path, batch_size=4), resume=hf.branch(origin, **changes))
        assert not list((tmp_path / "checkpoints").iterdir())

    def test_a_root_goes_on_with_its_own_branch_only(self, origin, tmp_path):
        """Another override in the same root is another branch, and the origin's root is none."""
        run(job(tmp_path), resume=hf.branch(origin, override={LR: 0.01}))
        with pytest.raises(hf.CheckpointError, match=r"was begun as a branch of .*0\.01.*choose another root"):
            run(job(tmp_path), resume=hf.branch(origin, override={LR: 0.02}))
        with pytest.raises(hf.CheckpointError, match="did not branch off"):
            run(job(origin.parent.parent), resume=hf.branch(origin))

    def test_a_checkpoint_of_the_same_name_is_not_the_same_checkpoint(self, origin, tmp_path):
        """Runs are called alike, so their checkpoints are: a branch of one does not go on as one of the other."""
        run(job(tmp_path / "another", seed=1))
        another = tmp_path / "another" / "checkpoints" / origin.name
        branch = {"lift": "seed", "override": {LR: 0.01}}
        run(job(tmp_path / "b"), resume=hf.branch(origin, **branch), total=3)
        with pytest.raises(hf.CheckpointError, match="another checkpoint of the same name"):
            run(job(tmp_path / "b"), resume=hf.branch(another, **branch))
        shutil.copytree(origin, tmp_path / "moved" / origin.name)
        for place in (tmp_path / "moved" / origin.name, tmp_path / "gone" / origin.name):
            result = run(job(tmp_path / "b"), resume=hf.branch(place, **branch), total=4)
            assert result.state.counters.iteration == 4

    def test_arguments_of_another_kind_are_refused(self):
        for arguments in ({"checkpoint": 3}, {"checkpoint": "a", "lift": [1]}, {"checkpoint": "a", "override": [1]}):
            with pytest.raises(TypeError):
                hf.branch(**arguments)


class TestOverride:
    TREE: ClassVar = {
        "w": torch.ones(2, 3),
        "lr": torch.tensor(0.1, dtype=torch.float64),
        "n": torch.tensor(3),
        "f": 1.5,
        "b": True,
        "half": torch.tensor(1.0, dtype=torch.float16),
        "byte": torch.tensor(3, dtype=torch.uint8),
    }

    def test_leaves_are_replaced_by_name(self):
        """Numbers for leaves without dimensions, tensors for others; the old tree keeps its values."""
        new = hf.override(self.TREE, {"lr": 1, "f": 2, "w": torch.zeros(2, 3)})
        assert (new["lr"].item(), new["lr"].dtype, new["f"]) == (1.0, torch.float64, 2.0)
        assert not new["w"].any()
        assert self.TREE["w"].all()
        assert new["n"] is self.TREE["n"]

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"rl": 1.0}, ValueError, "did you mean 'lr'"),
            ({"w": 1.0}, TypeError, r"w is float32\[2, 3\].*a tensor like it, got float 1.0"),
            ({"w": torch.ones(3, 2)}, ValueError, "another shape"),
            ({"w": torch.ones(2, 3).double()}, TypeError, "convert it to torch.float32"),
            ({"lr": True}, TypeError, "number of its kind"),
            ({"n": 1.0}, TypeError, "number of its kind"),
            ({"n": 1 << 70}, ValueError, "does not fit"),
            ({"byte": -1}, ValueError, "byte is uint8.*-1 does not fit"),
            ({"half": 1e5}, ValueError, "half is float16.*100000.0 does not fit"),
            ({"f": 10**400}, ValueError, "does not fit"),
            ({"w": torch.ones(2, 3, device="meta")}, TypeError, "plain memory"),
            ({"w": torch.ones(2, 3).to_sparse()}, TypeError, "plain memory"),
            ({"b": 1}, TypeError, "must be of this type"),
            ({"l*": 0.1, "lr": 0.2}, ValueError, "both 'l.' and 'lr' change lr"),
            ([("lr", 1.0)], TypeError, "maps names"),
            ({3: 1.0}, TypeError, "maps names.*got 3"),
        ],
    )
    def test_a_value_that_does_not_fit_is_refused_with_the_leaf(self, changes, error, words):
        with pytest.raises(error, match=words):
            hf.override(self.TREE, changes)

    def test_a_name_of_two_leaves_changes_neither(self):
        """Dots in keys and numbers as texts can make the names of two paths the same."""
        for twins in ({"a.b": torch.tensor(1.0), "a": {"b": torch.tensor(2.0)}}, {"a": {1: 1.0, "1": 2.0}}):
            name = next(iter({"a.b": 0} if "a.b" in twins else {"a.1": 0}))
            with pytest.raises(ValueError, match=f"{name} is the name of .* and "):
                hf.override(twins, {name: 5.0})

    def test_infinities_are_values(self):
        """What is asked for is not what does not fit."""
        new = hf.override(self.TREE, {"half": math.inf, "lr": math.nan})
        assert new["half"].isposinf()
        assert new["lr"].isnan()
