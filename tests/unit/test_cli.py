"""The command line, on checkpoints of small real runs: what it prints, and with which status it ends."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint import Store
from helios_fn.cli import main
from helios_fn.cli.distance import distance
from helios_fn.text import size

from ..forked import run
from ..strategies import examples

X, Y = torch.arange(24.0).reshape(8, 3) / 24, torch.arange(8) % 2


def train(root: Path, name: str = "run", seed: int = 1) -> hf.TrainState:
    model, params, buffers = hf.functional(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return nn.functional.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    optimizer, average = hf.optim.adamw(0.1), hf.ema(0.5)
    state = hf.init_state(params, optimizer, buffers=buffers, average=average, seed=seed)
    cfg = hf.RunConfig(
        unit="iteration", total=6, checkpoint_every=2, validate_every=2, root=root, name=name, progress=False
    )
    step, data = hf.make_step(loss_fn, optimizer, average=average), hf.Loader(TensorDataset(X, Y), 4)
    return hf.run(step, state, data, cfg, validate=lambda s: {"loss": 1 / s.counters.iteration}).state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two roots with the runs of two seeds, never to be changed, and their final states."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, {name: train(folder / name, seed=seed) for seed, name in enumerate("ab")}


@pytest.fixture
def root(runs, tmp_path) -> Path:
    """A copy of a root, to be damaged."""
    shutil.copytree(runs[0] / "a", tmp_path / "a")
    return tmp_path / "a"


def checkpoint(root: Path, iteration: int = 6) -> Path:
    (found,) = (root / "checkpoints").glob(f"*_iter_{iteration}")
    return found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def call(capsys):
    """Runs a command in this process: status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run


class TestInspect:
    def test_a_checkpoint_is_shown_as_a_tree(self, runs, call):
        """Shapes, dtypes, sizes and scalars; run, position, versions, geometry, configuration; in 120 columns."""
        status, out, _ = call("inspect", checkpoint(runs[0] / "a"))
        words = " ".join(out.split())
        assert status == 0
        assert "run=run, epoch=3, iteration=6, micro_step=6" in words
        assert "loss=0.1667" in words
        for fact in ("torch=", "data.batch_size=4", "threads=1", "checkpoint_every=2", "0.weight float32[4, 3] 48 B"):
            assert fact in words
        assert "iteration int 6" in words
        assert max(map(len, out.splitlines())) <= 120

    def test_shared_memory_and_strides_are_told(self, tmp_path, call):
        """Which leaf shares whose memory."""
        base = torch.zeros(3, 4)
        state = {"a": base, "b": base[1], "c": torch.zeros(2, 3).T, "n": None}
        path = Store(tmp_path, "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
        _, out, _ = call("inspect", path)
        assert "b    float32[4]     16 B  shares memory with ['a']" in out
        assert "strides [1, 3]" in out

    def test_a_root_lists_its_checkpoints(self, root, call):
        """With iteration, epoch, metric, size, and whether they are whole."""
        status, out, _ = call("inspect", root)
        assert status == 0
        rows = [line.split() for line in out.splitlines()]
        assert rows[0] == ["iteration", "epoch", "loss", "size", "files", "checkpoint"]
        assert [row[0] for row in rows[1:5]] == ["0", "2", "4", "6"]
        assert rows[4][1:3] == ["3", "0.1667"]
        assert "4 checkpoints" in out
        (checkpoint(root, 4) / "tensors.safetensors").unlink()
        (checkpoint(root, 2) / "manifest.json").write_text("{}")
        status, out, _ = call("inspect", root / "checkpoints")
        assert status == 1
        assert "2 damaged" in out
        assert "manifest.json is damaged" in out
        assert "tensors.safetensors is missing" in out

    def test_a_damaged_checkpoint_is_named(self, root, call):
        """One line on stderr."""
        path = checkpoint(root)
        (path / "tensors.safetensors").write_bytes(b"short")
        status, _, err = call("inspect", path)
        assert (status, err.count("\n")) == (1, 1)
        assert "tensors.safetensors is damaged: it has 5 bytes instead of" in err

    def test_names_from_a_file_cannot_command_the_terminal(self, tmp_path, call):
        """Escape sequences are shown, not sent."""
        state = {"\x1b[2Jevil\n\r": torch.zeros(1), "s": "\x1b]0;title\x07"}
        path = Store(tmp_path, "run").save(state, epoch=0, iteration=0, micro_step=0, record={"\x1b[1m": "\x1b[0m"})
        other = Store(tmp_path / "b", "run").save({"\x1b[2J": 1}, epoch=0, iteration=0, micro_step=0, record={})
        for arguments in (["inspect", path], ["diff", path, other], ["inspect", tmp_path]):
            _, out, err = call(*arguments)
            assert not {"\x1b", "\r", "\x07"} & {*out, *err}


class TestVerify:
    def test_sound_checkpoints_are_counted(self, runs, call):
        """Of single folders and of whole roots."""
        status, out, _ = call("verify", runs[0] / "a", checkpoint(runs[0] / "b"))
        assert status == 0
        assert out.splitlines()[-1] == "5 checkpoints valid, 0 damaged"

    @pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
    def test_a_flipped_bit_is_found_and_the_file_named(self, root, call, name):
        """Status 1; the other checkpoints are checked all the same."""
        flip(checkpoint(root, 4) / name)
        status, out, _ = call("verify", root)
        assert status == 1
        (line,) = (line for line in out.splitlines() if line.startswith("DAMAGED"))
        assert f"iter_4/{name}" in line or (name == "manifest.json" and name in line)
        assert "3 checkpoints valid, 1 damaged" in out

    def test_what_cannot_be_checked_is_not_called_valid(self, runs, tmp_path, call):
        """A root without checkpoints; a plain file, which has no digest."""
        (tmp_path / "checkpoints").mkdir()
        assert call("verify", tmp_path)[0] == 1
        (tmp_path / "w.safetensors").write_bytes(b"")
        status, _, err = call("verify", tmp_path / "w.safetensors")
        assert status == 1
        assert "plain file" in err


class TestDigest:
    def test_runs_of_the_same_bits_print_the_same(self, runs, tmp_path, call):
        """Under another name, in another folder, with other checkpoints; it is `helios_fn.tree.digest` of the state."""
        folder, states = runs
        train(tmp_path, name="other", seed=0)
        printed = {call("digest", path)[1] for path in (folder / "a", tmp_path, checkpoint(tmp_path))}
        assert printed == {tree.digest(states["a"]) + "\n"}
        assert call("digest", folder / "b")[1] == tree.digest(states["b"]) + "\n"

    def test_a_root_of_two_runs_or_with_damage_has_no_digest(self, root, call):
        """Nobody could say whose."""
        train(root, name="second")
        status, out, err = call("digest", root)
        assert (status, out) == (1, "")
        assert "holds the runs run, second: name the checkpoint" in err
        (next((root / "checkpoints").glob("second_*_iter_4")) / "manifest.json").unlink()
        assert "manifest.json is missing" in call("digest", root)[2]


class TestDiff:
    def test_equal_states_have_status_0(self, runs, call):
        """Whatever their folders are called."""
        status, out, _ = call("diff", runs[0] / "a", checkpoint(runs[0] / "a"))
        assert (status, out.startswith("equal: ")) == (0, True)

    def test_differing_leaves_are_told_with_numbers(self, tmp_path, call):
        """How many elements, by how much, the first and the worst with both values."""
        one = {"a": torch.tensor([1.0, 2.0, 4.0]), "n": 3, "s": "x", "t": torch.tensor([1, 2]), "u": torch.ones(2)}
        other = {**one, "a": torch.tensor([1.0, 2.0000002, 4.5]), "n": 4, "s": "y", "t": torch.tensor([1, -2])}
        paths = [
            Store(tmp_path / str(i), "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
            for i, state in enumerate((one, other))
        ]
        status, out, _ = call("diff", *paths)
        rows = [line.split() for line in out.splitlines()]
        assert status == 1
        assert rows[0] == ["4", "of", "5", "leaves", "differ:"]
        assert rows[2] == ["['a']", "2", "3", "0.5", "0.1111", "1048576"]
        assert rows[3] == ["['n']", "1", "1", "1", "0.25", "-"]
        assert rows[4] == ["['s']", "1", "1", "-", "-", "-"]
        assert rows[5] == ["['t']", "1", "2", "4", "2", "-"]
        assert "first: ['a'][1]: 2 in A, 2.00000024 in B" in out
        assert "worst: ['t'][1]: 2 in A, -2 in B" in out
        assert "... and 3 more" in call("diff", *paths, "--rows", 1)[1]

    def test_structures_are_compared_first(self, tmp_path, call):
        """Missing leaves, other shapes and other containers; what both have is compared all the same."""
        one, other = {"a": torch.zeros(2), "b": 1, "c": [1]}, {"a": torch.zeros(3), "d": 1, "c": (2,)}
        paths = [
            Store(tmp_path / str(i), "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
            for i, state in enumerate((one, other))
        ]
        status, out, _ = call("diff", *paths)
        words = " ".join(out.split())
        assert status == 1
        assert "4 differences in structure" in out
        assert "['a'] float32[2] float32[3]" in words
        assert "['b'] int -" in words
        assert "['c'] list of 1 tuple of 1" in words
        assert "['c'][0] 1 1 1 0.5" in words


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [torch.bool, torch.uint8, torch.int8, torch.int64, torch.uint64, torch.uint16]


class TestDistance:
    @settings(deadline=None, max_examples=examples(50))
    @given(st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 300), st.floats(-1e4, 1e4))
    def test_the_ulp_distance_counts_floats(self, kind, steps, start):
        """As many as there are steps of nextafter, across zero and powers of two."""
        first = last = kind(start)
        for _ in range(steps):
            last = np.nextafter(last, kind(math.inf))
        found = distance(torch.tensor([first]), torch.tensor([last]))
        assert (found.ulps if steps else found.differing) == steps
        assert distance(torch.tensor([last]), torch.tensor([first])).ulps == found.ulps

    @pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, torch.complex64, torch.float8_e4m3fn], ids=str)
    def test_every_dtype_is_compared(self, dtype):
        """Bit by bit, and by value where torch can compute with it."""
        one, other = torch.tensor([0, 1, 1, 0]).to(dtype), torch.tensor([0, 1, 0, 0]).to(dtype)
        found = distance(one, other)
        assert (found.differing, found.first, found.worst) == (1, (2,), (2,))
        assert (found.absolute, found.relative) == (1, 1)
        assert distance(one, one.clone()).differing == 0

    def test_extremes(self):
        """NaN is the worst; infinities, both zeros and the ends of the integers are no trouble."""
        found = distance(torch.tensor([[1.0, math.nan], [2.0, 3.0]]), torch.tensor([[1.5, 1.0], [2.0, -math.inf]]))
        assert (found.differing, found.first, found.worst) == (3, (0, 0), (0, 1))
        assert math.isnan(found.absolute)
        assert math.isnan(found.relative)
        assert distance(torch.tensor(0.0), torch.tensor(-0.0))[0::4] == (1, 0.0)
        assert distance(torch.tensor(0.0), torch.tensor(-0.0)).ulps == 0
        ends = torch.tensor([-(2**63)]), torch.tensor([2**63 - 1])
        assert distance(*ends).absolute == float(2**64 - 1)
        assert distance(torch.tensor([math.inf]), torch.tensor([1.0])).relative == math.inf
        assert distance(torch.tensor([math.nan]), torch.tensor([1.0])).ulps is None
        assert distance(torch.zeros(0), torch.zeros(0)).differing == 0


class TestExport:
    def test_the_weights_load_strictly(self, runs, tmp_path, call):
        """Into the module they came from; the averages with --averages."""
        folder, states = runs
        status, out, _ = call("export", folder / "a", tmp_path / "w.safetensors")
        assert (status, "9 tensors" in out) == (0, True)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        module.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
        assert torch.equal(module[0].weight, states["a"].params["0.weight"])
        call("export", folder / "a", tmp_path / "v.safetensors", "--averages", "--omit", "1.*", "--tie", "x=0.bias")
        found = load_file(tmp_path / "v.safetensors")
        assert found.keys() == {"0.weight", "0.bias", "2.weight", "2.bias", "x"}
        assert torch.equal(found["x"], states["a"].averages["0.bias"])

    def test_it_refuses_to_overwrite(self, runs, tmp_path, call):
        """With status 1 and one line."""
        (tmp_path / "w.safetensors").write_text("mine")
        status, _, err = call("export", runs[0] / "a", tmp_path / "w.safetensors")
        assert (status, err.count("\n")) == (1, 1)
        assert "w.safetensors exists" in err


class TestPrune:
    ARGUMENTS = ("--best", "1", "--monitor", "loss", "--mode", "max")

    def test_it_only_shows_what_it_would_do(self, root, call):
        """Unless it is told to delete; nothing is written meanwhile."""
        before = sorted(root.rglob("*"))
        for arguments in (self.ARGUMENTS, (*self.ARGUMENTS, "--dry-run")):
            status, out, _ = call("prune", root, *arguments)
            assert status == 0
            decisions = [" ".join(line.split()[5:-1]) for line in out.splitlines()[2:5]]
            assert decisions == ["stays: best 1", "stays: last 2", "stays: newest"]
            assert "1 checkpoint would be removed" in out
        assert sorted(root.rglob("*")) == before

    def test_with_delete_it_removes(self, root, call):
        """The same ones; a second time there is nothing to do."""
        status, out, _ = call("prune", root, *self.ARGUMENTS, "--delete")
        assert status == 0
        assert "epoch_0_iter_0" in out
        assert not (root / "checkpoints" / "run_epoch_0_iter_0").exists()
        assert len(list((root / "checkpoints").iterdir())) == 3
        assert call("prune", root, *self.ARGUMENTS, "--delete")[1] == "all stay\n"

    def test_a_root_in_use_is_refused(self, root, call):
        """With the process that uses it."""
        with Store(root, "run").lock():
            status, _, err = call("prune", root, "--last", 2, "--delete")
        assert status == 1
        assert f"in use by process {os.getpid()}" in err

    def test_several_runs_must_be_told_apart(self, root, call):
        """By --name; the other's checkpoints stay."""
        train(root, name="second")
        status, _, err = call("prune", root, "--last", 2)
        assert (status, "run, second; give --name" in err) == (1, True)
        assert call("prune", root, "--last", 2, "--name", "second", "--delete")[0] == 0
        assert len(list((root / "checkpoints").glob("run_*"))) == 4
        assert len(list((root / "checkpoints").glob("second_*"))) == 2

    def test_what_a_resume_moved_aside_stays_until_it_is_asked_for(self, root, call):
        """How much it is, is told in any case; with the flag and --delete it goes, but what else lies there stays."""
        store = Store(root, "run")
        aside = store.supersede(store.at(checkpoint(root, 2)))
        (aside / "log.jsonl").write_text("the end of a log")
        (root / "superseded" / "notes").mkdir()
        (root / "superseded" / "2").symlink_to(root / "checkpoints")
        before = sorted(root.rglob("*"))
        total = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        assert f"superseded: 2 checkpoints stay, {size(total)};" in call("prune", root, "--last", 5)[1]
        for arguments in (["--superseded"], ["--superseded", "--dry-run"], ["--last", 2, "--superseded"]):
            status, out, _ = call("prune", root, *arguments)
            assert status == 0
            assert f"goes  {aside}  2 checkpoints, " in out
            assert "superseded: 2 checkpoints would be removed, " in out
        assert sorted(root.rglob("*")) == before
        with store.lock():
            status, _, err = call("prune", root, "--superseded", "--delete")
        assert (status, "in use by process" in err) == (1, True)
        status, out, _ = call("prune", root, "--superseded", "--delete")
        assert (status, f"removed  {aside}  2 checkpoints, " in out) == (0, True)
        assert {path for path in before if not path.is_relative_to(aside)} == set(root.rglob("*"))
        assert call("prune", root, "--superseded", "--delete")[1] == "superseded: nothing\n"
        assert call("prune", root, "--last", 2)[1].endswith("all stay\n")

    def test_a_damaged_checkpoint_is_spared(self, root, call):
        """And does not count as one of the two."""
        flip(checkpoint(root) / "tensors.safetensors")
        assert call("prune", root, "--last", 1, "--delete")[0] == 0
        assert len(list((root / "checkpoints").iterdir())) == 3
        assert not (root / "checkpoints" / "run_epoch_0_iter_0").exists()

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            ([], 2, "give a rule"),
            (["--best", "2"], 2, "set monitor"),
            (["--last", "0"], 2, "--last must be an integer of at least 1"),
            (["--best", "1", "--monitor", "los"], 1, "no checkpoint has a metric 'los'; there are loss"),
            (["--last", "2", "--name", "no"], 1, "it holds run"),
        ],
    )
    def test_mistakes_are_told(self, runs, call, arguments, status, message):
        """In one line."""
        found, _, err = call("prune", runs[0] / "a", *arguments)
        assert (found, err.count("\n")) == (status, 1)
        assert message in err


class TestMigrate:
    def test_current_checkpoints_need_nothing(self, runs, call):
        """And that is what it says."""
        status, out, _ = call("migrate", runs[0] / "a")
        assert status == 0
        assert "nothing needs migrating: 4 checkpoints" in out

    def test_what_a_resume_moved_aside_is_a_root_of_its_own(self, root, call):
        """It is told of and left alone, and can be named."""
        store = Store(root, "run")
        aside = store.supersede(store.at(checkpoint(root, 2)))
        assert f"not looked at: 2 checkpoints in superseded; migrate {aside} is" in call("migrate", root)[1]
        assert "nothing needs migrating: 2 checkpoints" in call("migrate", aside)[1]

    def test_old_checkpoints_are_written_anew(self, call, tmp_path):
        """Into a root of their own, where all of them verify; the damaged one is named and left out."""
        old = tmp_path / "old"
        shutil.copytree(Path(__file__).parent.parent / "formats" / "1", old)
        status, out, _ = call("migrate", old, "--into", tmp_path / "new")
        assert status == 0
        assert [line.split()[:5] for line in out.splitlines()] == [
            [f"tiny_epoch_0_iter_{number}", "from", "format", "1", "to"] for number in (0, 2)
        ]
        assert call("verify", *sorted((tmp_path / "new" / "checkpoints").iterdir()))[0] == 0
        (old / "checkpoints" / "tiny_epoch_0_iter_2" / "state.json").write_text("{}")
        status, out, _ = call("migrate", old, "--into", tmp_path / "newer")
        assert status == 1
        assert "tiny_epoch_0_iter_2 passed over: " in out


class TestAll:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "required"),
            (["inspekt", "x"], "there is no command 'inspekt'; did you mean 'inspect'"),
            (["zzz", "x"], "invalid choice"),
            (["verify"], "PATH"),
            (["inspect", "nowhere"], "nowhere does not exist"),
            (["digest", "."], "neither a checkpoint (it has no manifest.json) nor a root"),
            (["prune", ".", "--last", "2"], "is no root"),
            (["prune", "here", "--delete", "--dry-run"], "not allowed with"),
        ],
    )
    def test_wrong_arguments_have_status_2(self, tmp_path, monkeypatch, call, arguments, message):
        """One line on stderr that says what to do."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "here" / "checkpoints").mkdir(parents=True)
        status, out, err = call(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
        assert "--help" in err

    def test_no_command_changes_a_checkpoint(self, root, tmp_path, call):
        """Not a byte, a name, or a time of change; a read-only root is no trouble."""

        def everything() -> dict[Path, tuple[int, bytes]]:
            files = [path for path in root.rglob("*") if path.is_file()]
            return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

        before = everything()
        path = checkpoint(root)
        for arguments in (
            ["inspect", root], ["inspect", path], ["verify", root], ["digest", root], ["diff", root, path],
            ["export", root, tmp_path / "w.safetensors"], ["prune", root, "--last", "2"], ["migrate", root],
        ):  # fmt: skip
            assert call(*arguments)[0] == 0
        assert everything() == before

    def test_sizes_have_three_digits(self):
        """In decimal units."""
        assert [size(n) for n in (0, 999, 1000, 1234567, 999_999, 10**12)] == [
            "0 B", "999 B", "1 kB", "1.23 MB", "1 MB", "1 TB",
        ]  # fmt: skip


class TestProcess:
    """The real thing."""

    def command(self, *arguments: object, **keywords) -> subprocess.Popen:
        words = [sys.executable, "-m", "helios_fn", *map(str, arguments)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)

    def test_a_digest_is_one_line_and_a_closed_pipe_is_quiet(self, runs, tmp_path):
        """What a shell script sees; `| head` leaves no traceback behind."""
        folder, states = runs
        with self.command("inspect", folder / "a") as cut:
            cut.stdout.close()
            with (tmp_path / "said").open("wb") as said:
                words = [sys.executable, "-m", "helios_fn", "digest", f"{folder / 'a'}"]
                done = run(words, stdout=said, env={"PYTHONPATH": os.pathsep.join(sys.path)})
            assert (done.returncode, (tmp_path / "said").read_text()) == (0, tree.digest(states["a"]) + "\n")
            assert cut.stderr.read() == ""
            assert cut.wait(120) == 141
