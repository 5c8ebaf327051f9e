"""The dry run: what it says of memory is what a real step takes, and what it cannot follow it names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import helios_fn as hf
from helios_fn.testing import MemoryBill, dry_run

from ..jobs import FEATURES, Case, build

TOLERANCE = 0.02  # of what a step takes beside its inputs: scalars and the generators' states are not counted


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 256), nn.Linear(256, 4))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


def job(network, x):
    model, params, buffers = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return nn.functional.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    optimizer, average = hf.optim.adamw(1e-3), hf.ema(0.9)
    state = hf.init_state(params, optimizer, buffers=buffers, average=average)
    return hf.make_step(loss_fn, optimizer, average=average), state, (x, torch.arange(len(x)) % 4)


def measured(call, state, batch) -> int:
    """The most bytes that the allocator has given out at one time, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = call(state, batch)
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donating"])
@pytest.mark.parametrize("name", ["perceptron", "transformer"])
def test_the_peak_is_what_a_real_step_allocates(name, donate):
    """To two per cent, for a perceptron and a transformer, with AdamW in torch's fused kernel and an average."""
    x = {"perceptron": torch.randn(128, 64), "transformer": torch.randint(100, (16, 24))}[name]
    step, state, batch = job({"perceptron": perceptron, "transformer": Transformer}[name], x)
    bill = dry_run(step, state, batch, donate=donate)
    call = step.donating if donate else step
    step(state, batch)
    fresh = state.replace(
        **{f: hf.tree.map(torch.clone, getattr(state, f)) for f in ("params", "opt_state", "averages")}
    )
    assert bill.work == pytest.approx(measured(call, fresh, batch), rel=TOLERANCE)


def test_the_parts_add_up():
    """Bytes of each part of the state, of the batch, and of what one linear layer keeps: its input and its outcome."""
    params = {"w": torch.zeros(100, 10), "tied": torch.zeros(1)}
    params["tied"] = params["w"][0]
    optimizer = hf.optim.sgd(0.1, momentum=0.9)
    step = hf.make_step(lambda params, buffers, batch, key: (batch @ params["w"]).square().mean(), optimizer)
    state = hf.init_state(params, optimizer, buffers={"b": torch.zeros(3, dtype=torch.float64)})
    bill = dry_run(step, state, torch.zeros(50, 100))
    assert (bill.params, bill.buffers, bill.averages, bill.batch) == (4000, 24, 0, 20000)
    assert bill.opt_state == 4000 + 40 + 8
    assert bill.activations == 50 * 10 * 4
    assert bill.state == bill.params + bill.buffers + bill.opt_state + bill.other
    assert bill.peak == bill.state + bill.batch + bill.work


def test_a_model_that_would_not_fit_can_be_asked_about():
    """A quarter of a tebibyte of parameters, nothing of which is ever allocated."""
    optimizer = hf.optim.adamw(1e-3)
    step = hf.make_step(lambda params, buffers, batch, key: (batch @ params["w"]).square().mean(), optimizer)
    bill = dry_run(
        step,
        lambda: hf.init_state({"w": torch.zeros(1 << 18, 1 << 18)}, optimizer),
        lambda: torch.zeros(8, 1 << 18),
        donate=True,
    )
    assert bill.params == 1 << 38
    assert "256.00 GiB" in str(bill)


@pytest.mark.parametrize(
    "case",
    [
        Case(dropout=True, batch_norm=True, accumulation=3),
        Case(handwritten=True, ema=True, dropout=True),
        Case(optimizer="torch", every=2),
        Case(precision="fp16"),
        pytest.param(
            Case(compile="whole", dropout=True), marks=pytest.mark.soak
        ),  # the compiler's import takes seconds
    ],
    ids=["accumulating", "by hand", "torch", "fp16", "compiled"],
)
def test_a_dry_run_leaves_no_trace(case):
    """Afterwards state and step are as if it had not been; whatever the step does, it can be followed."""
    found, labels = build(case), torch.tensor([0, 1, 1])
    item = torch.ones(3, FEATURES), labels
    batch = item if case.accumulation == 1 else hf.MicroBatches((item,) * 3, 0, 3)
    state, drawn = found.state, torch.get_rng_state()
    before = hf.tree.digest(state)
    bill = dry_run(found.step, state, batch)
    assert bill.activations
    assert hf.tree.digest(state) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert hf.tree.digest(found.step(state, batch)) == hf.tree.digest(build(case).step(state, batch))


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (lambda x: x * x.sum().item(), ".item()"),
        (lambda x: x if x.sum() > 0 else -x, "if x.sum() > 0"),
        (lambda x: x[x > 0], "x[x > 0]"),
        (lambda x: x * float(x.detach().numpy().mean()), "numpy()"),
    ],
    ids=["item", "if", "mask", "numpy"],
)
def test_a_line_that_needs_values_is_named(code, line):
    """The file, the line and the remedy."""
    step = hf.make_step(lambda params, buffers, batch, key: code(params["w"] * batch).sum(), hf.optim.sgd(0.1))
    with pytest.raises(hf.NotTraceable, match=r"test_dry_run\.py:\d+: .*Leave \.item\(\)") as caught:
        dry_run(step, hf.init_state({"w": torch.ones(100)}, hf.optim.sgd(0.1)), torch.ones(100))
    assert line in str(caught.value)


def test_a_step_that_does_not_fit_together_raises_its_own_error():
    """Before anything real has been tried."""
    step = hf.make_step(lambda params, buffers, batch, key: (batch @ params["w"]).sum(), hf.optim.sgd(0.1))
    with pytest.raises(RuntimeError, match="same reduction dim"):
        dry_run(step, hf.init_state({"w": torch.ones(7, 2)}, hf.optim.sgd(0.1)), torch.ones(100, 100))


def test_gradients_by_torch_func_are_followed_without_their_activations():
    """Its transforms take no hooks: what is kept is not known, the peak is."""
    grad = torch.func.grad(lambda params, batch: (params["w"] * batch).square().sum())

    def step(state, batch):
        grads = grad(state.params, batch)
        return state.replace(params=hf.tree.map(lambda p, g: p - g, state.params, grads))

    bill = dry_run(step, hf.init_state({"w": torch.ones(100)}), torch.ones(100))
    assert bill.activations is None
    assert bill.work >= 800
    assert "not known" in str(bill)


def test_donation_is_asked_only_of_steps_that_can():
    """The error says which can."""
    with pytest.raises(TypeError, match="donate=True needs a step"):
        dry_run(lambda state, batch: state, hf.init_state({"w": torch.ones(1)}), None, donate=True)


def test_a_bill_is_a_table():
    """Empty lines are left out; units are powers of 1024."""
    bill = MemoryBill(2048, 0, 4096, 0, 24, 512, 300, 1 << 21, False)
    assert str(bill).splitlines() == [
        "memory of one step               tensors",
        "params                          2.00 KiB",
        "optimiser state                 4.00 KiB",
        "other state                         24 B",
        "batch                              512 B",
        "work at the peak                1.99 MiB",
        "  kept for backward, at most       300 B",
        "peak                            2.00 MiB",
        "(old and new state are both there)",
    ]
