"""Compiled steps: one graph, compiled as often as there are shapes, the same bits in every run, errors with the line.

The ordinary suite compiles by the compiler's front end alone; `make soak` in more combinations, and with real kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import helios_fn as hf
from helios_fn import tree
from helios_fn.types import Counters, Cursor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        # No bias before the norm: its gradient is nothing but rounding, which Adam would blow up.
        first = nn.Linear(4, 8, bias=False)
        self.layers = nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


def pieces(draws="keyed"):
    model, params, buffers = hf.functional(Net, seed=0, draws=draws)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x, key=key)
        accuracy = (logits.argmax(1) == y).float().mean()
        loss = nn.functional.cross_entropy(logits, y)
        return loss, hf.Aux(buffers=buffers, weight=len(y), metrics={"accuracy": accuracy})

    return loss_fn, params, buffers


def optimizer():
    rate = hf.schedules.warmup_cosine(0.05, warmup_steps=2, total_steps=30)
    return hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(rate))


def made(compile=None, backend="eager"):
    loss_fn, params, buffers = pieces()
    options = {"backend": backend} if compile else None
    average = hf.ema(0.9)
    step = hf.make_step(loss_fn, optimizer(), average=average, compile=compile, compile_options=options)
    return step, hf.init_state(params, optimizer(), buffers=buffers, average=average)


def handwritten(backend="eager"):
    """A step of the user's own: own counter, own noise, a Python number in its state."""
    loss_fn, params, buffers = pieces()
    opt = optimizer()
    grad_fn = hf.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        (loss, aux), grads = grad_fn(state.params, state.buffers, batch, hf.step_key(state, "dropout"))
        noise = hf.random.normal(hf.step_key(state, "noise"), (3,))
        params, opt_state = opt.update(grads, state.opt_state, state.params)
        extra = {"steps": state.extra["steps"] + 1, "sum": state.extra["sum"] + noise}
        return state.replace(
            params=params, opt_state=opt_state, buffers=aux.buffers, extra=extra, metrics={"loss": loss}
        )

    state = hf.init_state(params, opt, buffers=buffers, extra={"steps": 0, "sum": torch.zeros(3)})
    return step, hf.compile(step, backend=backend), state


def loader():
    x = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
    return hf.Loader(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4)


def config(**changes) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 14, "progress": False, "log_every": None, **changes})


def close(left, right) -> bool:
    pairs = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5) for a, b in pairs)


soak = pytest.mark.soak


@pytest.mark.parametrize(
    ("mode", "accumulation", "backend"),
    [
        ("grad", 2, "eager"),  # "whole": see `test_one_graph_for_each_shape_along_a_run_and_its_resume`
        *(
            pytest.param(mode, accumulation, backend, marks=soak)
            for mode in ("grad", "whole")
            for accumulation in (1, 2)
            for backend in ("aot_eager", "inductor")
        ),
    ],
)
def test_compiling_changes_no_more_than_rounding(mode, accumulation, backend):
    """Compiled in either mode, a run computes what it computes uncompiled: draws, statistics, schedule, average."""
    cfg = config(accumulation_steps=accumulation, total=5)
    plain, state = made()
    compiled, _ = made(mode, backend)
    expected, found = (hf.run(each, state, loader(), cfg).state for each in (plain, compiled))
    for field in ("params", "buffers", "opt_state", "averages", "metrics"):
        assert close(getattr(found, field), getattr(expected, field)), field
    assert tree.structure(found) == tree.structure(expected)


@pytest.mark.parametrize("made_of", ["step", "ensemble"])
def test_a_step_compiles_after_it_has_run_uncompiled(made_of):
    """What eager steps remember, such as a constant learning rate as a tensor, is no part of a graph."""

    def loss_fn(params, buffers, batch, key):
        return (params["w"] * batch[0].mean()).square().sum()

    optimizer, batch = hf.optim.adamw(0.01), (torch.ones(4, 3),)
    step, state = hf.make_step(loss_fn, optimizer), hf.init_state({"w": torch.ones(2)}, optimizer)
    if made_of == "ensemble":
        step, state = hf.ensemble(step), hf.stack([state, state])
    counter = CompileCounterWithBackend("eager")
    compiled = hf.compile(step, backend=counter)

    def two_iterations(step):
        once = step(state, batch)
        return step(once.replace(metrics={}, counters=Counters(1, 1), cursor=Cursor(0, 0, 1)), batch)

    expected, found = two_iterations(step), two_iterations(compiled)
    assert counter.frame_count == 1  # counts are no constants of the graph
    assert close(found.params, expected.params)
    assert close(found.metrics, expected.metrics)


@pytest.mark.parametrize("kind", [pytest.param("grad", marks=soak), "whole", pytest.param("step", marks=soak)])
def test_one_graph_for_each_shape_along_a_run_and_its_resume(kind, tmp_path: Path):
    """Epochs, ragged tails, changing schedules and a resume compile two graphs: full batches and the tail.

    The resumed run ends in the bits of one that was not stopped, and they are within rounding of the uncompiled ones.
    """
    counter = CompileCounterWithBackend("eager")
    if kind == "step":
        plain, step, state = handwritten(counter)
    else:
        (plain, _), (step, state) = made(), made(kind, counter)
    hf.run(step, state, loader(), config(root=tmp_path, donate=False, total=8))
    resumed = hf.run(step, state, loader(), config(root=tmp_path, donate=False)).state
    assert counter.frame_count == 2
    assert tree.equal(resumed, hf.run(step, state, loader(), config(donate=False)).state)
    assert counter.frame_count == 2
    expected = hf.run(plain, state, loader(), config()).state
    for field in ("params", "buffers", "averages", "metrics"):
        assert close(getattr(resumed, field), getattr(expected, field)), field
    assert tree.structure(resumed) == tree.structure(expected)
    assert resumed.cursor == expected.cursor
    if kind == "step":  # keys and Python numbers of the user's own state mean in the graph what they mean outside
        assert resumed.extra["steps"] == 14
        assert close(resumed.extra["sum"], expected.extra["sum"])


@soak
@pytest.mark.parametrize("kind", ["grad", "whole", "step"])
@pytest.mark.parametrize("donate", [True, "auto"])
def test_compiled_runs_resume_bit_for_bit_and_donation_changes_no_bit(kind, donate, tmp_path: Path):
    step, state = handwritten("aot_eager")[1:] if kind == "step" else made(kind, "aot_eager")
    whole = hf.run(step, state, loader(), config(total=9, donate=False)).state
    for total in (4, 9):
        resumed = hf.run(step, state, loader(), config(total=total, donate=donate, root=tmp_path)).state
    assert tree.equal(resumed, whole)


@soak
def test_a_compiled_state_that_was_given_away_says_so():
    step, state = made("whole")
    batch = next(iter(loader().epoch(state.key)))
    mine = step(state, batch)
    step.donating(mine, batch)
    with pytest.raises(hf.StateDonated):
        mine.params["x"]


class TestErrors:
    def test_a_branch_on_a_value_is_named_with_its_line(self):
        loss_fn, params, buffers = pieces()

        def branching(params, buffers, batch, key):
            loss, aux = loss_fn(params, buffers, batch, key)
            if loss > 1.0:  # the culprit
                loss = loss * 2
            return loss, aux

        for mode in ("grad", "whole"):
            step = hf.make_step(branching, optimizer(), compile=mode, compile_options={"backend": "eager"})
            state = hf.init_state(params, optimizer(), buffers=buffers)
            with pytest.raises(hf.NotTraceable, match=r"test_compile.py:\d+: if loss > 1.0.*torch.where"):
                step(state, next(iter(loader().epoch(state.key))))

    def test_a_step_that_reads_a_value_is_named_with_its_line(self):
        def reading(state, batch):
            return state.replace(extra=state.extra + (1 if batch[0].sum().item() > 0 else 2))

        state = hf.init_state({"w": torch.ones(2)}, opt_state=(), extra=torch.zeros(()))
        with pytest.raises(hf.NotTraceable, match=r"test_compile.py:\d+: return state.replace.*needs the value"):
            hf.compile(reading, backend="eager")(state, next(iter(loader().epoch(state.key))))

    def test_the_users_own_error_comes_in_its_own_words(self):
        loss_fn, params, buffers = pieces()

        def failing(params, buffers, batch, key):
            return loss_fn(params, buffers, (batch[0], batch[1][:2]), key)

        step = hf.make_step(failing, optimizer(), compile="whole", compile_options={"backend": "eager"})
        state = hf.init_state(params, optimizer(), buffers=buffers)
        with pytest.raises(RuntimeError, match="must match the size"):
            step(state, next(iter(loader().epoch(state.key))))

    def test_too_many_shapes_name_the_option(self):
        step = hf.compile(lambda state, batch: state.replace(extra=state.extra + batch.sum()), backend="eager")
        state = hf.init_state({"w": torch.ones(2)}, opt_state=(), extra=torch.zeros(()))

        def many_shapes():
            for size in range(1, 40):
                step(state, torch.ones(size))

        with pytest.raises(hf.NotTraceable, match="dynamic=True"):
            many_shapes()

    def test_native_draws_of_a_model_name_the_remedy(self):
        loss_fn, params, buffers = pieces(draws="scope")
        step = hf.make_step(loss_fn, optimizer(), compile="whole", compile_options={"backend": "eager"})
        state = hf.init_state(params, optimizer(), buffers=buffers)
        with pytest.raises((hf.NotTraceable, TypeError), match=r"draws=.{1,2}keyed"):
            step(state, next(iter(loader().epoch(state.key))))

    @pytest.mark.parametrize(
        ("keywords", "said"),
        [
            ({"compile": "all"}, "'grad', 'whole' or None"),
            ({"compile_options": {"mode": "default"}}, "set compile="),
            ({"compile": "grad", "compile_options": {"fullgraph": False}}, "fullgraph"),
        ],
    )
    def test_bad_options_are_refused(self, keywords, said):
        with pytest.raises(ValueError, match=said):
            hf.make_step(lambda params, buffers, batch, key: params["w"].sum(), optimizer(), **keywords)

    def test_compile_wants_a_function(self):
        with pytest.raises(TypeError, match="function"):
            hf.compile(None)


SCRIPT = """
import torch, helios_fn as hf
from torch._dynamo.utils import counters
torch.set_num_threads(1)
model, params, buffers = hf.functional(lambda: torch.nn.Linear(4, 3), seed=0)
def loss_fn(params, buffers, batch, key):
    return torch.nn.functional.cross_entropy(model(params, buffers, batch[0])[0], batch[1])
opt = hf.optim.adamw(0.01)
step = hf.make_step(loss_fn, opt, compile="whole")
x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
data = hf.Loader(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4)
cfg = hf.RunConfig(unit="iteration", total={total}, progress=False, root={root!r}, log_every=None, donate=False)
state = hf.run(step, hf.init_state(params, opt, buffers=buffers), data, cfg).state
found = counters["inductor"]
print(hf.tree.digest(state), found["fxgraph_cache_hit"], found["fxgraph_cache_miss"])
"""


@soak
def test_a_relaunch_uses_the_kernels_of_the_run_before_and_gives_its_bits(tmp_path: Path):
    """Real kernels, real processes: the second one compiles nothing anew, and goes on to the same bits."""

    def launch(total: int, root: str) -> list[str]:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
        command = [sys.executable, "-c", SCRIPT.format(total=total, root=str(tmp_path / root))]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    whole, _, misses = launch(8, "whole")
    assert int(misses) > 0
    launch(5, "parts")
    resumed, hits, misses = launch(8, "parts")
    assert (resumed, int(misses)) == (whole, 0)
    assert int(hits) > 0
