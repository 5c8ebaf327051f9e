"""The dynamic loss scale: GradScaler's decisions and bits, as a pure function of the state."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import optim, tree
from helios_fn.optim import LossScaleState, loss_scale, loss_scaled

SETTINGS = {"init_scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2}


def params_of():
    generator = torch.Generator().manual_seed(0)
    return {"b": torch.randn(2, generator=generator), "w": torch.randn(3, 2, generator=generator)}


def loss_fn(params, buffers, batch, key):
    """A batch is (inputs, bad): where ``bad`` is 1 the loss is as always, and its gradient NaN."""
    x, bad = batch
    zero = params["b"].sum() * 0
    nothing = torch.sqrt(zero * bad + (1 - bad)) - (1 - bad)
    loss = torch.tanh(x @ params["w"] + params["b"]).square().mean()
    return loss + nothing, hf.Aux(weight=len(x))


def batch_of(step: int, bad: bool = False):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, generator=generator), torch.tensor(float(bad))


def started(optimizer):
    return hf.init_state(params_of(), optimizer)


def scale_of(state) -> tuple[float, int, int]:
    found = loss_scale(state.opt_state)
    return found.scale.item(), found.growth.item(), found.skipped.item()


@settings(max_examples=15, deadline=None)
@given(
    overflows=st.lists(st.booleans(), min_size=1, max_size=12),
    interval=st.integers(1, 3),
    growth=st.sampled_from([2.0, 1.5]),
    backoff=st.sampled_from([0.5, 0.3]),
    clip=st.booleans(),
)
def test_parameters_and_scale_are_those_of_torchs_grad_scaler_step_by_step(overflows, interval, growth, backoff, clip):
    given = {"init_scale": 768.0, "growth_factor": growth, "backoff_factor": backoff, "growth_interval": interval}
    scaler = torch.amp.GradScaler("cpu", **given)
    live = {name: leaf.clone().requires_grad_() for name, leaf in params_of().items()}
    reference = torch.optim.AdamW(live.values(), lr=0.05, fused=True)
    parts = [optim.clip_by_global_norm(0.1), optim.adamw(0.05)] if clip else [optim.adamw(0.05)]
    optimizer = loss_scaled(optim.chain(*parts), **given)
    step, state = hf.make_step(loss_fn, optimizer), started(optimizer)
    for at, bad in enumerate(overflows):
        loss, _ = loss_fn(live, None, batch_of(at, bad), None)
        reference.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(reference)
        if clip:
            torch.nn.utils.clip_grad_norm_(live.values(), 0.1)
        scaler.step(reference)
        scaler.update()
        state = step(state, batch_of(at, bad))
        assert scale_of(state) == (scaler.get_scale(), scaler._get_growth_tracker(), sum(overflows[: at + 1]))
        assert tree.equal(state.params, {name: leaf.detach() for name, leaf in live.items()})
        assert torch.equal(state.metrics["loss"], loss.detach())
        assert state.metrics["loss_scale"] == scaler.get_scale()
        assert int(state.first_bad) == -1


def test_the_scale_does_not_grow_beyond_float32_as_in_torch():
    optimizer = loss_scaled(optim.sgd(0.1), init_scale=2.0**127, growth_interval=1)
    _, opt_state = optimizer.update(params_of(), optimizer.init(params_of()), params_of())
    assert (opt_state.scale, opt_state.growth) == (2.0**127, 0)


def test_the_defaults_are_those_of_torch():
    scaler = torch.amp.GradScaler("cpu")
    made = loss_scaled(optim.sgd(0.1)).update.__self__
    for name in ("init_scale", "growth_factor", "backoff_factor", "growth_interval"):
        assert getattr(made, name) == getattr(scaler, f"get_{name}" if name != "init_scale" else "get_scale")()


def test_a_skipped_update_changes_nothing_but_the_scale():
    """Inner memory, count, schedule and average rest."""
    optimizer, average = loss_scaled(optim.adamw(optim.schedules.linear(0.1, 0.0, 10)), **SETTINGS), hf.ema(0.9)
    step = hf.make_step(loss_fn, optimizer, average=average)
    state = hf.init_state(params_of(), optimizer, average=average)
    before = step(state, batch_of(0))
    after = step(before, batch_of(1, bad=True))
    assert tree.equal(
        (before.params, before.averages, before.opt_state.inner), (after.params, after.averages, after.opt_state.inner)
    )
    assert optimizer.count(after.opt_state) == 1
    assert scale_of(after) == (512.0, 0, 1)


def test_a_loss_that_is_not_finite_is_a_fault_and_so_is_an_overflow_at_the_smallest_scale():
    optimizer = loss_scaled(optim.sgd(0.1), init_scale=2.0**-13)
    step = hf.make_step(loss_fn, optimizer)
    state = step(started(optimizer), batch_of(0, bad=True))
    assert int(state.first_bad) == -1  # at 2**-14
    state = step(state.replace(counters=hf.Counters(1, 1)), batch_of(1, bad=True))
    assert int(state.first_bad) == 1
    x, bad = batch_of(0)
    assert int(step(started(optimizer), (x * torch.nan, bad)).first_bad) == 0


def test_several_micro_batches_decide_together():
    """One that overflows spoils the mean, and the whole iteration is skipped: what any process decides, all do."""
    optimizer = loss_scaled(optim.adamw(0.1), **SETTINGS)
    step = hf.make_step(loss_fn, optimizer)
    for reduction in ("tree", "fold"):
        state = step(started(optimizer), hf.MicroBatches((batch_of(0), batch_of(1, bad=True)), 0, 2, reduction))
        assert tree.equal(state.params, params_of())
        assert scale_of(state) == (512.0, 0, 1)
        assert int(state.first_bad) == -1


def test_gradients_do_not_depend_on_a_scale_that_is_a_power_of_two():
    """So a scaled run has the bits of one without, as long as nothing overflows; micro-batches and SAM included."""
    items = hf.MicroBatches((batch_of(0), batch_of(1)), 0, 2)
    for around, batch in ((None, batch_of(0)), (None, items), (hf.sam(0.05), batch_of(0))):
        plain = hf.make_step(loss_fn, optim.adamw(0.1), around_grad=around)
        scaled = loss_scaled(optim.adamw(0.1))
        found = hf.make_step(loss_fn, scaled, around_grad=around)(started(scaled), batch)
        assert tree.equal(found.params, plain(started(optim.adamw(0.1)), batch).params)


def test_what_is_accumulated_by_every_is_skipped_as_one_update():
    optimizer = optim.every(2, loss_scaled(optim.adamw(0.1), **SETTINGS))
    step, state = hf.make_step(loss_fn, optimizer), started(optim.every(2, loss_scaled(optim.adamw(0.1), **SETTINGS)))
    for at, bad in enumerate((True, False, False, False)):
        state = step(state, batch_of(at, bad))
        assert int(state.first_bad) == -1
    assert optimizer.count(state.opt_state) == 1
    assert scale_of(state) == (512.0, 1, 1)


@pytest.mark.parametrize(("mode", "around"), [("grad", hf.sam(0.01)), ("whole", None)], ids=["grad", "whole"])
def test_compiled_it_decides_the_same(mode, around):
    optimizer = loss_scaled(optim.adamw(0.1), **SETTINGS)
    options = {"compile": mode, "compile_options": {"backend": "eager"}}
    compiled = hf.make_step(loss_fn, optimizer, around_grad=around, **options)
    plain = hf.make_step(loss_fn, optimizer, around_grad=around)
    state, other = started(optimizer), started(optimizer)
    for at, bad in enumerate((False, True, False, False)):
        state, other = compiled.donating(state, batch_of(at, bad)), plain(other, batch_of(at, bad))
        assert scale_of(state) == scale_of(other)
        assert int(state.first_bad) == -1
        torch.testing.assert_close(state.params, other.params)


def test_members_of_an_ensemble_have_scales_of_their_own():
    optimizer = loss_scaled(optim.sgd(0.1), **SETTINGS)

    def own(params, buffers, batch, key):
        loss, aux = loss_fn(params, None, batch, key)
        return loss, aux._replace(buffers=buffers)

    step = hf.ensemble(hf.make_step(own, optimizer), batches="own")
    states = [started(optimizer) for _ in range(2)]
    batches = [
        tree.map(lambda *leaves: torch.stack(leaves), batch_of(at), batch_of(at, bad=at == 1)) for at in range(3)
    ]
    many = hf.stack(states)
    for batch in batches:
        many = step(many, batch)
    assert many.opt_state.scale.tolist() == [2048.0, 512.0]
    assert many.extra.first_bad.tolist() == [-1, -1]
    for index, bad in enumerate((False, True)):
        alone = started(optimizer)
        for at in range(3):
            alone = hf.make_step(own, optimizer)(alone, batch_of(at, bad and at == 1))
        torch.testing.assert_close(hf.member(many, index).params, alone.params)


def test_a_step_by_hand_reads_the_scale_from_its_state():
    optimizer = loss_scaled(optim.adamw(0.1), **SETTINGS)
    grad_fn = hf.scaled_grad(loss_fn)

    def step(state, batch):
        scale = loss_scale(state.opt_state).scale
        mean = hf.microsteps(functools.partial(grad_fn, scale=scale), state, batch)
        params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params, weight=mean.weight)
        return state.replace(params=params, opt_state=opt_state, metrics={"loss": mean.loss})

    made, mine, other = hf.make_step(loss_fn, optimizer), started(optimizer), started(optimizer)
    for at, bad in enumerate((False, True, False)):
        mine, other = hf.guard_finite(step)(mine, batch_of(at, bad)), made(other, batch_of(at, bad))
        assert tree.equal(
            (mine.params, mine.opt_state, mine.first_bad), (other.params, other.opt_state, other.first_bad)
        )
    traced = hf.compile(step, backend="eager")(started(optimizer), batch_of(0))
    torch.testing.assert_close(traced.params, made(started(optimizer), batch_of(0)).params)


def test_small_gradients_survive_float16_with_a_scale_only():
    """What a loss scale is for: 1e-8 is zero in float16."""

    def tiny(params, buffers, batch, key):
        return (params["w"].half() * batch.half()).sum().float() * 1e-8

    params, batch = {"w": torch.ones(3)}, torch.tensor([1.0, 2.0, 3.0])
    grad_fn, key = hf.scaled_grad(tiny), hf.random.key(0)
    _, without = grad_fn(params, None, batch, key, torch.tensor(1.0))
    _, found = grad_fn(params, None, batch, key, torch.tensor(2.0**16))
    assert not without["w"].any()
    torch.testing.assert_close(found["w"], 1e-8 * batch, rtol=1e-2, atol=0)


def test_the_scale_is_found_in_what_stands_around_it():
    params = params_of()
    inner = loss_scaled(optim.sgd(0.1), **SETTINGS)
    for optimizer in (
        inner,
        optim.every(2, inner),
        optim.chain(optim.clip_by_value(1.0), inner),
        optim.lookahead(inner),
    ):
        assert isinstance(loss_scale(optimizer.init(params)), LossScaleState)
    assert loss_scale(optim.adamw(0.1).init(params)) is None


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"init_scale": 0.0}, ValueError, "init_scale"),
        ({"growth_factor": 1.0}, ValueError, "growth_factor must be above 1"),
        ({"backoff_factor": 1.0}, ValueError, "backoff_factor must be between 0 and 1"),
        ({"growth_interval": 0}, ValueError, "growth_interval must be at least 1"),
        ({"growth_interval": 2.5}, TypeError, "growth_interval must be an integer"),
    ],
)
def test_wrong_arguments_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        loss_scaled(optim.sgd(0.1), **given)
    with pytest.raises(TypeError, match=r"loss_scaled\(\) wraps an Optimizer"):
        loss_scaled(optim.clip_by_value(1.0))
