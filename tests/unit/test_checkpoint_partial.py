"""Parts of checkpoints in other states, and weights for others: nothing is loaded or left out in silence."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint import Store, export, open_contents
from helios_fn.checkpoint.leaves import DTYPES
from helios_fn.patterns import name_of

from ..strategies import examples


class Body(nn.Module):
    """Has what makes names hard: batch statistics, a frozen weight, a buffer that is not persistent, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight.requires_grad_(False)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))) * self.scale


class Classifier(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


X, Y = torch.arange(24.0).reshape(8, 3) / 24, torch.arange(8) % 2


def train(classes: int, root: Path | None, start: dict | None = None) -> hf.TrainState:
    """A small real run, from given weights if there are any."""
    model, params, buffers = hf.functional(lambda: Classifier(classes), seed=classes)
    params, buffers = start or (params, buffers)

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return nn.functional.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    optimizer, average = hf.optim.adamw(0.1), hf.ema(0.5)
    state = hf.init_state(params, optimizer, buffers=buffers, average=average)
    cfg = hf.RunConfig(unit="epoch", total=2, root=root, progress=False)
    step = hf.make_step(loss_fn, optimizer, average=average)
    return hf.run(step, state, hf.Loader(TensorDataset(X, Y), 4), cfg).state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    state = train(2, root)
    return state, next((root / "checkpoints").glob("*_iter_4"))


def fresh(classes: int = 5):
    return hf.functional(lambda: Classifier(classes), seed=9)


class TestRestore:
    """Chosen subtrees in a template of another structure."""

    def test_a_new_head_on_an_exported_body(self, trained, tmp_path):
        """The body's weights are the trained ones, the head's its own; the result trains, and both are reported."""
        state, checkpoint = trained
        export(checkpoint, tmp_path / "body.safetensors", omit=["head.*", "body.scale"])
        _, params, buffers = fresh(5)
        params, report = hf.restore(
            tmp_path / "body.safetensors", params, only=["*", "!*.norm.r*", "!*.num*", "!*cond.w*"]
        )
        assert torch.equal(params["body.first.weight"], state.params["body.first.weight"])
        assert params["head.weight"].shape == (5, 4)
        assert set(report.missing) == {"head.weight", "head.bias"}
        assert "2 kept, for the checkpoint has nothing of the name: head.bias, head.weight" in str(report)
        buffers, _ = hf.restore(tmp_path / "body.safetensors", buffers, strict=False)
        assert torch.equal(buffers["body.norm.running_mean"], state.buffers["body.norm.running_mean"])
        train(5, None, (params, buffers))

    def test_a_root_stands_for_its_newest_valid_checkpoint(self, trained, tmp_path, caplog):
        """A damaged one is passed over with a warning; of several runs one has to be named."""
        state, _ = trained
        template = {"params": fresh(2)[1]}

        def save(run: str, iteration: int) -> Path:
            return Store(tmp_path, run).save(state, epoch=0, iteration=iteration, micro_step=iteration, record={})

        _, newest = save("other", 1), save("other", 2)
        assert hf.restore(tmp_path, template, only="params.*").report.path == newest
        (newest / "tensors.safetensors").write_bytes(b"")
        found, report = hf.restore(tmp_path, template, only="params.*")
        assert tree.equal(found["params"], state.params)
        assert report.path.name == "other_epoch_0_iter_1"
        assert "passing over" in caplog.text
        save("second", 3)
        with pytest.raises(hf.CheckpointError, match="holds the runs other, second: name the run or the checkpoint"):
            hf.restore(tmp_path, template, only="params.*")

    def test_parts_of_a_checkpoint_in_a_whole_state(self, trained):
        """Optimiser, counters and all else stay those of the template; the report names each leaf of both."""
        state, checkpoint = trained
        _, params, buffers = fresh(2)
        template = hf.init_state(params, hf.optim.sgd(0.1), buffers=buffers)
        found, report = hf.restore(checkpoint, template, only=["params.*", "buffers.*", "!*.head.bias"])
        assert tree.equal(found.buffers, state.buffers)
        assert torch.equal(found.params["head.weight"], state.params["head.weight"])
        assert torch.equal(found.params["head.bias"], params["head.bias"])
        assert found.counters.iteration == 0
        assert found.opt_state is not None
        assert {"params.head.bias", "counters.iteration"} <= set(report.unchosen)
        assert {"averages.head.bias", "params.head.bias"} <= set(report.unused)
        check_partition(report, template, checkpoint)

    def test_averages_under_the_name_of_parameters(self, trained):
        """A renaming moves a whole subtree; the empty name is the whole tree."""
        state, checkpoint = trained
        found, report = hf.restore(checkpoint, dict(state.params), only="averages.*", rename={"averages": ""})
        assert tree.equal(found, state.averages)
        assert len(report.loaded) == len(state.params)
        nested = {"model": {"net": state.params}}
        moved = {"params": "model.net", "params.head": "elsewhere"}
        _, report = hf.restore(checkpoint, nested, only="params.*", rename=moved, strict=False)
        assert "model.net.body.first.bias" in report.loaded
        assert set(report.missing) == {"model.net.head.bias", "model.net.head.weight"}
        assert {"params.head.bias", "params.head.weight", "counters.iteration"} <= set(report.unused)
        assert report.loaded["model.net.body.first.bias"] == "params.body.first.bias"
        evaluated, report = hf.restore(checkpoint, state, only="averages.*", rename={"averages": "params"})
        assert tree.equal(evaluated.params, state.averages)
        assert "(of averages.body.first.bias)" in str(report)
        assert "opt_state.* (" in str(report)
        by_function, _ = hf.restore(
            checkpoint, {"b": torch.zeros(2)}, only="params.head.bias", rename=lambda name: name[-4]
        )
        assert torch.equal(by_function["b"], state.params["head.bias"])

    def test_what_does_not_fit_is_an_error_with_both_shapes(self, trained):
        """Unless that is asked for; then the template keeps its own, and the report says so."""
        _, checkpoint = trained
        template = {"params": dict(fresh(5)[1])}
        with pytest.raises(ValueError, match=r"params.head.bias: saved float32\[2\], expected float32\[5\]"):
            hf.restore(checkpoint, template, only="params.*")
        found, report = hf.restore(checkpoint, template, only="params.*", strict=False)
        assert found["params"]["head.bias"] is template["params"]["head.bias"]
        assert [misfit.path for misfit in report.misfits] == ["params.head.bias", "params.head.weight"]
        assert "params.head.weight: saved float32[2, 4], expected float32[5, 4]" in str(report)
        wide = {"params": {"head.bias": torch.zeros(2, dtype=torch.float64), "head.weight": 3}}
        with pytest.raises(ValueError, match=r"(?s)float32\[2\], expected float64\[2\].*float32\[2, 4\], expected int"):
            hf.restore(checkpoint, wide, only="params.head.*")

    def test_dtypes_are_converted_on_request_and_the_report_says_which(self, tmp_path):
        """Floating to floating and complex to complex, as torch converts them; numbers of another kind never."""
        saved = {
            "half": torch.rand(3).bfloat16(),
            "same": torch.ones(2),
            "count": torch.arange(2),
            "z": torch.ones(1) * 1j,
        }
        path = Store(tmp_path, "run").save(saved, epoch=0, iteration=0, micro_step=0, record={})
        like = {
            "half": torch.zeros(3),
            "same": torch.zeros(2),
            "count": torch.zeros(2, dtype=torch.int64),
            "z": torch.zeros(1, dtype=torch.complex128),
        }
        with pytest.raises(
            ValueError, match=r"(?s)set cast=True to convert.*half: saved bfloat16\[3\], expected float32"
        ):
            hf.restore(path, like)
        found, report = hf.restore(path, like, cast=True)
        assert tree.equal(found, {**saved, "half": saved["half"].float(), "z": saved["z"].to(torch.complex128)})
        assert report.cast == {"half": "bfloat16", "z": "complex64"}
        assert "2 of them cast: half (was bfloat16), z (was complex64)" in str(report)
        check_partition(report, like, path)
        for dtype in (torch.float32, torch.int32, torch.bool):
            other = {**like, "count": torch.zeros(2, dtype=dtype)}
            with pytest.raises(ValueError, match=r"strict=False.*\n  count: saved int64\[2\], expected") as caught:
                hf.restore(path, other, cast=True)
            assert "cast=True" not in str(caught.value)
            _, report = hf.restore(path, other, cast=True, strict=False)
            assert [misfit.path for misfit in report.misfits] == ["count"]
        with pytest.raises(ValueError, match=r"half: saved bfloat16\[3\], expected float32\[4\]"):
            hf.restore(path, {**like, "half": torch.zeros(4)}, cast=True)

    @pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
    @pytest.mark.parametrize("saved", sorted(DTYPES))
    def test_every_conversion_is_torchs_or_refused(self, tmp_path, saved):
        """Between all dtypes: no other error, and no bit that `torch.Tensor.to` would not give."""
        tensor = torch.tensor([1, 0, 1]).to(torch.uint8 if "x2" in saved else DTYPES[saved]).view(DTYPES[saved])
        path = Store(tmp_path, "run").save({"a": tensor}, epoch=0, iteration=0, micro_step=0, record={})
        for dtype in DTYPES.values():
            like = {"a": torch.empty(3, dtype=dtype)}
            try:
                found, report = hf.restore(path, like, cast=True)
            except ValueError:
                assert not (tensor.dtype.is_floating_point and dtype.is_floating_point) or "x2" in f"{saved} {dtype}"
            else:
                assert tree.equal(found["a"], tensor.to(dtype))
                assert bool(report.cast) == (dtype != tensor.dtype)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"only": "parms.*"}, r"'parms\.\*' matches nothing in .*did you mean 'params\.\*'"),
            ({"only": ["params.*", "!params.haed.*"]}, r"did you mean '!params\.head\.\*'"),
            ({"only": "params.head.wieght"}, r"did you mean 'params.head.weight'"),
            ({"only": []}, "chooses nothing"),
            ({"rename": {"parms": "params"}}, "nothing chosen in .* is called 'parms'; did you mean 'params'"),
            ({"rename": lambda name: "same"}, "makes 'same' of both"),
            ({"only": "opt_state.*"}, "has no place in the template"),
            ({"only": "opt_state.*", "strict": False}, "nothing in .* has a place in the template"),
        ],
    )
    def test_a_silent_nothing_is_impossible(self, trained, keywords, message):
        """What matches nothing, or finds no place, is an error that names candidates."""
        state, checkpoint = trained
        with pytest.raises(ValueError, match=message):
            hf.restore(checkpoint, {"params": state.params}, **keywords)

    def test_kinds_are_checked(self, trained):
        """TypeError for kinds."""
        state, checkpoint = trained
        for keywords in ({"only": 3}, {"only": [3]}, {"rename": "x"}, {"rename": lambda name: None}):
            with pytest.raises(TypeError):
                hf.restore(checkpoint, state, **keywords)

    def test_two_leaves_of_one_name_are_refused(self, trained):
        """Nobody could say which one is meant."""
        both = {"params": {"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}}
        with pytest.raises(ValueError, match=r"have the same name, 'params.a.b'"):
            hf.restore(trained[1], both)

    def test_damage_is_noticed_in_parts_that_are_not_wanted(self, trained, tmp_path):
        """Each byte of a checkpoint is checked; what is no file at all is named."""
        store = Store(tmp_path, "run")
        state = {"a": torch.zeros(3), "b": torch.ones(30, dtype=torch.float16)}
        path = store.save(state, epoch=0, iteration=0, micro_step=0, record={})
        assert torch.equal(hf.restore(path, {"a": torch.ones(3)}, only="a").tree["a"], torch.zeros(3))
        file = path / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        with pytest.raises(hf.CheckpointError, match=r"tensors\.safetensors is damaged"):
            hf.restore(path, {"a": torch.ones(3)}, only="a")
        with pytest.raises(hf.CheckpointError, match="nowhere is not a folder"):
            hf.restore(tmp_path / "nowhere", {"a": torch.ones(3)})
        (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(hf.CheckpointError, match=r"x.safetensors is damaged"):
            hf.restore(tmp_path / "x.safetensors", {"a": torch.ones(3)})

    def test_what_is_loaded_shares_memory_with_nothing_else(self, tmp_path):
        """Neither with the template nor with the file; leaves that shared memory when saved still do."""
        base = torch.arange(6.0)
        state = {"a": base, "b": base[2:4], "c": torch.zeros(2)}
        path = Store(tmp_path, "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
        found, _ = hf.restore(path, state)
        found["a"][2] = 9
        assert found["b"][0] == 9
        assert base[2] == 2
        save_file({"c": torch.ones(2)}, tmp_path / "c.safetensors")
        found, _ = hf.restore(tmp_path / "c.safetensors", state)
        found["c"][0] = 7
        assert load_file(tmp_path / "c.safetensors")["c"][0] == 1


def check_partition(report, template, checkpoint) -> None:
    """Each leaf of the template, and each of the checkpoint, is in exactly one part of the report."""
    misfits = [misfit.path for misfit in report.misfits]
    in_template = [*report.loaded, *report.missing, *report.unchosen, *misfits]
    assert sorted(in_template) == sorted(name_of(path) for path in tree.paths(template))
    in_checkpoint = [*report.loaded.values(), *report.unused, *misfits]
    assert sorted(in_checkpoint) == sorted(name_of(path) for path in open_contents(checkpoint).leaves())


LEAVES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 2), max_size=5)


@settings(deadline=None, max_examples=examples(30))
@given(LEAVES, LEAVES, st.lists(st.sampled_from("abcde"), max_size=4, unique=True))
def test_every_leaf_is_accounted_for(stored, wanted, chosen):
    """Loaded leaves have the checkpoint's values, all others the template's, whatever the two sides hold."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.safetensors"
        save_file({key: torch.full((size,), 1.0) for key, size in stored.items()}, path)
        template = {key: torch.zeros(size) for key, size in wanted.items()}
        only = [key for key in chosen if key in stored] or None
        fitting = {key for key in only or stored if wanted.get(key) == stored[key]} if stored else set()
        if not fitting:
            with pytest.raises(ValueError, match="nothing in"):
                hf.restore(path, template, only=only, strict=False)
            return
        found, report = hf.restore(path, template, only=only, strict=False)
        assert set(report.loaded) == fitting
        check_partition(report, template, path)
        for key, leaf in found.items():
            assert leaf.eq(1 if key in fitting else 0).all()
            assert (leaf is template[key]) != (key in fitting)


class TestExport:
    """A file that others load."""

    def test_the_file_loads_strictly_into_the_module(self, trained, tmp_path):
        """Parameters, frozen ones and persistent buffers, under the module's names, bit for bit."""
        state, checkpoint = trained
        done = export(checkpoint, tmp_path / "w.safetensors", omit=["body.scale"])
        module = Classifier(2)
        module.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
        assert set(done.names) == set(module.state_dict())
        expected = {**state.params, **state.buffers}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
        load_model(Classifier(2), tmp_path / "w.safetensors")

    def test_averages_take_the_place_of_the_parameters(self, trained, tmp_path):
        """With the same buffers."""
        state, checkpoint = trained
        export(checkpoint, tmp_path / "w.safetensors", averages=True)
        assert tree.equal(load_file(tmp_path / "w.safetensors"), {**state.averages, **state.buffers})

    def test_one_module_of_several_and_further_names_of_tied_weights(self, tmp_path):
        """A state holds a tied tensor once; a strict state_dict wants it twice. Views are written as they look."""
        shared = torch.arange(6.0).reshape(2, 3)
        params = {"generator": {"emb": {"weight": shared.T}}, "critic": {"weight": shared[0]}}
        state = hf.init_state(params, hf.optim.sgd(0.1))
        path = Store(tmp_path, "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
        export(path, tmp_path / "g.safetensors", module="generator", ties={"head.weight": "emb.weight"})
        found = load_file(tmp_path / "g.safetensors")
        assert tree.equal(found, {"emb.weight": shared.T, "head.weight": shared.T})
        with pytest.raises(ValueError, match="has no module 'generater'"):
            export(path, tmp_path / "x.safetensors", module="generater")
        with pytest.raises(ValueError, match="'a' cannot stand for 'b': there is none"):
            export(path, tmp_path / "x.safetensors", ties={"a": "b"})
        with pytest.raises(ValueError, match="holds no averages: the run kept none"):
            export(path, tmp_path / "x.safetensors", averages=True)
        assert sorted(os.listdir(tmp_path)) == ["checkpoints", "g.safetensors"]

    def test_nothing_is_overwritten_and_nothing_half_written(self, trained, tmp_path, monkeypatch):
        """A file that exists stays; a disk that fails leaves no file."""
        out = tmp_path / "w.safetensors"
        out.write_text("mine")
        with pytest.raises(ValueError, match="exists: choose another name"):
            export(trained[1], out)
        assert out.read_text() == "mine"
        with pytest.raises(ValueError, match=r"must end in \.safetensors"):
            export(trained[1], tmp_path / "w.pt")
        with pytest.raises(hf.CheckpointError, match="cannot write"):
            export(trained[1], tmp_path / "nowhere" / "w.safetensors")
        monkeypatch.setattr("helios_fn.checkpoint.files.FileSystem.sync", lambda self, handle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(trained[1], tmp_path / "new.safetensors")
        assert os.listdir(tmp_path) == ["w.safetensors"]

    def test_a_dtype_that_the_format_lacks_is_named(self, tmp_path):
        """Before anything is written."""
        state = hf.init_state({"w": torch.zeros(2, dtype=torch.complex128), "v": torch.zeros(1)}, opt_state=())
        path = Store(tmp_path, "run").save(state, epoch=0, iteration=0, micro_step=0, record={})
        with pytest.raises(ValueError, match=r"w is complex128\[2\], which a plain safetensors file cannot hold"):
            export(path, tmp_path / "w.safetensors")
        assert export(path, tmp_path / "w.safetensors", omit=["w"]).names == ("v",)


class TestContents:
    """What a checkpoint holds, without a template."""

    def test_the_digest_is_that_of_the_state(self, trained, tmp_path):
        """Of the tree that was saved, whatever it is made of; a plain file's is that of its dict."""
        state, checkpoint = trained
        assert open_contents(checkpoint).digest() == tree.digest(state)
        odd = {10: 1, 9: [2, (True, None)], "b": {"x": {}}, "a": 1.5}
        path = Store(tmp_path, "run").save(odd, epoch=0, iteration=0, micro_step=0, record={})
        assert open_contents(path).digest() == tree.digest(odd)
        assert list(open_contents(path).leaves()) == tree.paths(odd)
        export(checkpoint, tmp_path / "w.safetensors")
        assert open_contents(tmp_path / "w.safetensors").digest() == tree.digest({**state.params, **state.buffers})
