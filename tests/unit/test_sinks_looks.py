"""Looks at states: histograms and images in TensorBoard, each exactly once, and no trace of them in the training."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.sinks import TensorBoard
from helios_fn.sinks._summaries import histograms, picture, png
from helios_fn.testing import Crash

from ..strategies import examples

X, Y = torch.arange(24.0).reshape(8, 3) / 24, torch.arange(8) % 2
SIZES = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}


class DiesAt(hf.Observer):
    """Ends the process, as far as a run can tell, after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_iteration(self, state: Any) -> None:
        if state.counters.iteration == self.iteration:
            raise Crash


def draw(state: Any) -> torch.Tensor:
    return torch.rand(3, 1, 4, 5) * 0 + float(state.counters.iteration) / 100


def run(root: Path | None, sinks: list[Any], *observers: hf.Observer, **fields: Any) -> hf.Result:
    """Ten iterations of a small classifier that keeps its gradients."""
    model, params, buffers = hf.functional(lambda: nn.Linear(3, 2))

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return nn.functional.cross_entropy(logits, batch[1]), hf.Aux(buffers, len(batch[1]))

    optimizer = hf.optim.chain(hf.optim.keep_gradients(), hf.optim.adamw(0.1))
    state = lambda: hf.init_state(params, optimizer, buffers=buffers)  # noqa: E731
    every = None if root is None else 4
    cfg = hf.RunConfig(
        unit="iteration", total=10, root=root, progress=False, log_every=3, checkpoint_every=every, **fields
    )
    data = hf.Loader(TensorDataset(X, Y), 4)
    return hf.run(
        hf.make_step(loss_fn, optimizer), state, data, cfg, sinks=sinks, observers=observers, pass_through=[Crash]
    )


def board(**changes: Any) -> TensorBoard:
    shown = {
        "histograms": {"weights": lambda state: state.params, "gradients": lambda state: state.opt_state[0].grads},
        "images": {"samples": draw},
        "every": hf.Every(2, "iteration"),
    }
    return TensorBoard(**{**shown, **changes})


def shown(root: Path) -> dict[str, Any]:
    """What TensorBoard shows, without times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = root.glob("logs/*/tensorboard")
    reader = EventAccumulator(str(folder), size_guidance=SIZES).Reload()
    tags = reader.Tags()
    return {
        **{tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags["scalars"] if tag.startswith("train")},
        **{tag: [(e.step, e.histogram_value) for e in reader.Histograms(tag)] for tag in tags["histograms"]},
        **{tag: [(e.step, e.encoded_image_string) for e in reader.Images(tag)] for tag in tags["images"]},
        **{
            tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in reader.Tensors(tag)]
            for tag in tags["tensors"]
        },
    }


def test_looks_are_exactly_once_after_any_crash(tmp_path):
    """Histograms, images, scalars and texts of a run that died twice are those of one that never did."""
    run(tmp_path / "once", [board(texts={"notes": "*hello*"})])
    for dies_at in (6, 9):
        with pytest.raises(Crash):
            run(tmp_path / "often", [board(texts={"notes": "*hello*"})], DiesAt(dies_at))
    run(tmp_path / "often", [board(texts={"notes": "*hello*"})])
    once, often = shown(tmp_path / "once"), shown(tmp_path / "often")
    assert often == once
    for tag in ("weights/weight", "weights/bias", "gradients/weight", "samples"):
        assert [step for step, _ in once[tag]] == [2, 4, 6, 8, 10]
    assert [step for step, _ in once["train/loss"]] == [3, 6, 9]
    assert once["notes/text_summary"] == [(0, "*hello*")]
    assert "| total | 10 iterations |" in once["run/text_summary"][0][1]


@pytest.mark.parametrize("donate", [True, "auto", False])
def test_looking_changes_no_bit(donate):
    """A look may draw from the global generators and keep the state, and the training goes on as if it had not."""
    kept = []

    def look(state):
        kept.append((state, tree.digest(state.params)))
        return state.params["weight"] + torch.rand(()) + np.random.rand()

    class Looks:
        name, look_every = "looks", hf.Every(3, "iteration")
        open = write = close = flush = lambda self, *values: None

        def look(self, state):
            look(state)
            return lambda: None

    before = torch.get_rng_state()
    plain, looked = run(None, [], donate=donate).state, run(None, [Looks()], donate=donate).state
    assert torch.equal(before, torch.get_rng_state())
    assert tree.equal(plain, looked)
    assert [state.counters.iteration for state, _ in kept] == [3, 6, 9]
    assert all(tree.digest(state.params) == digest for state, digest in kept), "a state that was shown was overwritten"


def test_gradients_that_are_kept_are_those_of_the_update(tmp_path):
    """And keeping them changes no update."""
    params = {"w": torch.tensor([1.0, -2.0])}
    kept, plain = hf.optim.chain(hf.optim.keep_gradients(), hf.optim.adamw(0.1)), hf.optim.adamw(0.1)
    ours, theirs = kept.init(params), plain.init(params)
    assert tree.equal(ours[0].grads, {"w": torch.zeros(2)})
    here = there = params
    for step in range(3):
        grads = {"w": torch.tensor([0.5, float(step)])}
        here, ours = kept.update(grads, ours, here)
        there, theirs = plain.update(grads, theirs, there)
        assert tree.equal(ours[0].grads, grads)
        assert tree.equal(here, there)


def test_a_look_that_fails_leaves_no_row_and_is_told(tmp_path):
    """The iteration is done again, so nothing of it may be in a log. The message names it, and the function."""
    wrong = board(images={"samples": lambda state: torch.zeros(4, 4) if state.counters.iteration == 6 else draw(state)})
    with pytest.raises(hf.RunFailed, match=r"after iteration 6 .*images\['samples'\] returned float32\[4, 4\]"):
        run(tmp_path, [hf.sinks.JsonLines(), wrong])
    (log,) = tmp_path.glob("logs/*/metrics.jsonl")
    assert [row.iteration for row in hf.sinks.read_rows(log)] == [3]
    run(tmp_path, [hf.sinks.JsonLines(), board()])
    assert [row.iteration for row in hf.sinks.read_rows(log)] == [3, 6, 9]
    assert [step for step, _ in shown(tmp_path)["samples"]] == [2, 4, 6, 8, 10]


def test_a_look_that_writes_to_the_state_is_an_error(tmp_path):
    """As for validation: the leaf is named, and the state before it is what stays."""
    with pytest.raises(hf.RunFailed, match=r"PurityError: the look of a sink wrote .*bias"):
        run(tmp_path, [board(histograms={"w": lambda state: state.params["bias"].add_(1)})])


def test_what_cannot_be_shown_is_refused_at_once():
    """When the sink is made, not at iteration 100."""
    with pytest.raises(TypeError, match=r"hparams\['sizes'\] must be a number, a bool or a text, got \[1\]"):
        TensorBoard(hparams={"sizes": [1]})
    with pytest.raises(TypeError, match=r"texts\['a'\] must be a text, got 3"):
        TensorBoard(texts={"a": 3})
    with pytest.raises(TypeError, match=r"histograms\['w'\] must be a function of the state, got float32\[2\]"):
        TensorBoard(histograms={"w": torch.zeros(2)})
    with pytest.raises(TypeError, match=r"every must say of what, such as hf.Every\(100, 'iteration'\), got 5"):
        TensorBoard(every=5)
    assert TensorBoard().look_every is None


def test_hyperparameters_are_those_of_the_plugin(tmp_path):
    """With their types, once, under the name of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run(tmp_path, [TensorBoard(hparams={"lr": 0.1, "layers": 2, "norm": True, "act": "gelu"})])
    (folder,) = tmp_path.glob("logs/*/tensorboard")
    reader = EventAccumulator(str(folder)).Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.group_name == "run"
    assert {name: value.WhichOneof("kind") for name, value in start.hparams.items()} == {
        "lr": "number_value", "layers": "number_value", "norm": "bool_value", "act": "string_value",
    }  # fmt: skip


@settings(deadline=None, max_examples=examples(12))
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
)
def test_a_histogram_counts_each_finite_element_once(values, dtype):
    """Whatever the values: its buckets hold them between the least and the greatest."""
    leaf = torch.tensor(values).to(dtype)
    finite = (leaf.abs() if dtype.is_complex else leaf).double()
    finite = finite[finite.isfinite()]
    found = list(histograms("w", {"a": leaf, "text": "no tensor"}))
    assert [value.tag for value in found] == (["w/a"] if len(finite) else [])
    for value in found:
        histo = value.histo
        assert (histo.min, histo.max, histo.num) == (finite.min(), finite.max(), len(finite))
        assert sum(histo.bucket) == len(finite)
        assert list(histo.bucket_limit) == sorted(histo.bucket_limit)
        assert histo.bucket_limit[-1] == histo.max


def test_tags_of_leaves_read_like_names():
    """Keys with dots, indices, and a lone leaf."""
    x = torch.ones(2)
    tags = [value.tag for value in histograms("w", {"0.weight": x, "blocks": [x, {"b": x}]})]
    assert tags == ["w/0.weight", "w/blocks.0", "w/blocks.1.b"]
    assert [value.tag for value in histograms("w", x)] == ["w"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_decoded_to_the_pixels_they_were(channels):
    """By the rules of PNG: checksums, and lines that begin with filter 0."""
    images = torch.arange(5 * channels * 4 * 3, dtype=torch.uint8).reshape(5, channels, 4, 3)
    sheet = picture("x", images)
    assert sheet.shape == (2 * 5 - 1, 3 * 4 - 1, channels)
    assert np.array_equal(sheet[5:9, 4:7], images[4].permute(1, 2, 0).numpy())
    data, chunks = png(sheet)[8:], {}
    while data:
        (length,) = struct.unpack(">I", data[:4])
        kind, body = data[4:8], data[8 : 8 + length]
        assert struct.unpack(">I", data[8 + length : 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind], data = body, data[12 + length :]
    width, height, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert not lines[:, 0].any()
    assert np.array_equal(lines[:, 1:].reshape(sheet.shape), sheet)


def test_images_that_are_none_are_explained():
    """Shape, range and dtype are named, and what they must be."""
    with pytest.raises(ValueError, match=r"images\['x'\] returned float32\[3, 4, 4\]: the shape must be"):
        picture("x", torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="returned floats from -1 to 2: they must be from 0 to 1"):
        picture("x", torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"returned torch\.int64: it must be uint8"):
        picture("x", torch.ones(1, 1, 2, 2, dtype=torch.int64))
    assert picture("x", torch.full((1, 1, 1, 1), 0.5)).item() == 128
