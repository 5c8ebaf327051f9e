"""Autocast as a wrapper: torch's bits, float32 everywhere outside, and the ways a loss function is transformed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios_fn as hf
from helios_fn import tree

F = torch.nn.functional
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = (torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2)


def network():
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


MODEL, PARAMS, BUFFERS = hf.functional(network, draws="keyed")
SEEN = []


def loss_fn(params, buffers, batch, key):
    x, y = batch
    logits, buffers = MODEL(params, buffers, x, key=key)
    SEEN.append(logits.dtype)
    return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))


def evaluated(params, buffers, batch, key):
    """A loss without noise and batch statistics."""
    logits, _ = MODEL.eval(params, buffers, batch[0])
    return F.cross_entropy(logits, batch[1])


def optimizer_of(precision):
    made = hf.optim.adamw(0.05)
    return hf.optim.loss_scaled(made) if precision == "fp16" else made


def trained(step, optimizer, updates=3):
    state = hf.init_state(PARAMS, optimizer, buffers=BUFFERS)
    for _ in range(updates):
        state = step(state, BATCH)
    return state


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_has_the_bits_of_a_loop_with_torchs_autocast(precision):
    """And everything in its state is float32 as before."""
    optimizer = optimizer_of(precision)
    state = trained(hf.make_step(evaluated, optimizer, precision=precision), optimizer)
    module = network().eval()
    module.load_state_dict({**PARAMS, **BUFFERS})
    reference, scaler = torch.optim.AdamW(module.parameters(), lr=0.05, fused=True), torch.amp.GradScaler("cpu")
    for _ in range(3):
        reference.zero_grad()
        with torch.autocast("cpu", DTYPES[precision]):
            loss = F.cross_entropy(module(BATCH[0]), BATCH[1])
        (scaler.scale(loss) if precision == "fp16" else loss).backward()
        scaler.step(reference) if precision == "fp16" else reference.step()
        scaler.update() if precision == "fp16" else None
    assert tree.equal(state.params, {name: leaf.detach() for name, leaf in module.named_parameters()})
    assert all(leaf.dtype is torch.float32 for leaf in tree.leaves(state.params))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_forward_pass_is_in_half_precision_and_the_state_keeps_its_dtypes(precision):
    optimizer = optimizer_of(precision)
    SEEN.clear()
    before = hf.init_state(PARAMS, optimizer, buffers=BUFFERS)
    after = hf.make_step(loss_fn, optimizer, precision=precision)(before, BATCH)
    assert set(SEEN) == {DTYPES[precision]}
    for name in ("params", "buffers", "opt_state"):
        old, new = tree.leaves(getattr(before, name)), tree.leaves(getattr(after, name))
        assert [leaf.dtype for leaf in old] == [leaf.dtype for leaf in new]
    assert after.metrics["loss"].dtype is torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_loss_that_is_computed_in_half_precision_is_returned_in_float32():
    def half(params, *rest):
        return (params["w"] @ params["w"]).mean()

    params = {"w": torch.randn(3, 3)}
    loss = hf.autocast(half)(params)
    assert loss.dtype is torch.float32
    assert loss == loss.bfloat16()
    pair = hf.autocast(lambda params: (half(params), "aux"))(params)
    assert pair[0].dtype is torch.float32
    assert pair[1] == "aux"
    assert hf.autocast(lambda params: params["w"] @ params["w"])(params).dtype is torch.bfloat16


def test_every_route_to_the_gradient_gives_the_same_bits():
    """By autograd, by torch.func, and by a step; a weight that is used twice included."""

    def twice(params, buffers, batch, key):
        return torch.tanh(batch[0] @ params["w"] @ params["w"]).square().mean()

    params = {"w": torch.randn(3, 3)}
    fn = hf.autocast(twice)
    rest = (None, BATCH, None)
    _, first = hf.value_and_grad(fn)(params, *rest)
    _, second = hf.value_and_grad(fn, higher_order=True)(params, *rest)
    assert tree.equal(first, second)
    assert tree.equal(first, torch.func.grad(fn)(params, *rest))
    assert first["w"].dtype is torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_micro_batches_and_wrappers_of_the_gradient_compose(precision):
    optimizer = optimizer_of(precision)
    step = hf.make_step(loss_fn, optimizer, precision=precision, around_grad=hf.sam(0.05), average=hf.ema(0.9))
    state = hf.init_state(PARAMS, optimizer, buffers=BUFFERS, average=hf.ema(0.9))
    batch = hf.MicroBatches((BATCH, BATCH), 0, 2)
    before = tree.digest(state)
    once, again = step(state, batch), step(state, batch)
    assert tree.equal(once, again)
    assert tree.digest(state) == before
    assert int(once.first_bad) == -1
    assert not tree.equal(once.params, state.params)


def check_compiled(loss_fn, mode, precision, backend):
    # Not Adam: it makes as much of the rounding of gradients that are zero as of others.
    optimizer = hf.optim.sgd(0.1)
    optimizer = hf.optim.loss_scaled(optimizer) if precision == "fp16" else optimizer
    given = {"precision": precision, "compile": mode, "compile_options": {"backend": backend}}
    state = trained(hf.make_step(loss_fn, optimizer, **given), optimizer)
    assert int(state.first_bad) == -1
    assert all(leaf.dtype is torch.float32 for leaf in tree.leaves(state.params))
    wanted = trained(hf.make_step(loss_fn, optimizer, precision=precision), optimizer)
    torch.testing.assert_close(state.params, wanted.params, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("mode", "precision"), [("grad", "fp16")])
def test_compiled_it_agrees(mode, precision):
    check_compiled(evaluated, mode, precision, "eager")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("mode", ["grad", "whole"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_compiled_with_real_kernels_it_agrees(mode, precision, backend):
    check_compiled(loss_fn, mode, precision, backend)


def test_an_ensemble_is_mapped_in_half_precision():
    def mapped(params, buffers, batch, key):
        with hf.random.keyed(key):
            hidden = F.dropout(torch.relu(batch[0] @ params["first"]), 0.2)
        SEEN.append(hidden.dtype)
        return F.cross_entropy(F.layer_norm(hidden, (6,)) @ params["last"], batch[1])

    step, params = hf.make_step(mapped, hf.optim.sgd(0.1), precision="bf16"), {"first": torch.randn(3, 6)}
    params["last"] = torch.randn(6, 2)
    states = [hf.init_state(params, hf.optim.sgd(0.1), seed=seed) for seed in range(2)]
    SEEN.clear()
    many = hf.ensemble(step)(hf.stack(states), BATCH)
    assert set(SEEN) == {torch.bfloat16}
    for index, state in enumerate(states):
        torch.testing.assert_close(hf.member(many, index).params, step(state, BATCH).params, rtol=0.02, atol=0.01)


def test_a_validator_evaluates_in_half_precision():
    def evaluate(params, buffers, batch):
        logits, _ = MODEL.eval(params, buffers, batch[0])
        SEEN.append(logits.dtype)
        return hf.Aux(metrics={"loss": F.cross_entropy(logits, batch[1])}, weight=len(batch[1]))

    SEEN.clear()
    loader = hf.Loader(torch.utils.data.TensorDataset(*BATCH), 3, workers=0)
    hf.Validator(hf.autocast(evaluate), loader)(hf.init_state(PARAMS, hf.optim.sgd(0.1), buffers=BUFFERS))
    assert set(SEEN) == {torch.bfloat16}


def test_float16_without_a_loss_scale_is_refused():
    optimizer = hf.optim.sgd(0.1)
    for mode in (None, "grad"):
        step = hf.make_step(loss_fn, optimizer, precision="fp16", compile=mode)
        with pytest.raises(ValueError, match=r"precision='fp16' needs a loss scale.*hf\.optim\.loss_scaled"):
            trained(step, optimizer)


def test_what_is_no_function_dtype_or_precision_is_refused():
    with pytest.raises(TypeError, match="autocast\\(\\) takes a function"):
        hf.autocast(torch.float16)
    with pytest.raises(ValueError, match=r"dtype must be torch\.bfloat16 or torch\.float16, got torch\.float64"):
        hf.autocast(loss_fn, torch.float64)
    with pytest.raises(ValueError, match=r"precision must be 'bf16', 'fp16' or None .* got 'half'"):
        hf.make_step(loss_fn, hf.optim.sgd(0.1), precision="half")
    with pytest.raises(TypeError, match="loss_fn must be a function of"):
        hf.make_step(hf.autocast(lambda params: params), hf.optim.sgd(0.1))
