"""Training as a differentiable function: exact gradients, and the same bits in less memory."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import tree
from helios_fn.unroll import unroll

STEPS = 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PARAMS = {"a": draw(3, 4, seed=1), "b": draw(4, 2, seed=2)}
BATCHES = [(draw(5, 3, seed=10 + i), draw(5, 2, seed=30 + i)) for i in range(STEPS)]
HELD_OUT = (draw(7, 3, seed=50), draw(7, 2, seed=51))
RATE, DECAY = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.03, dtype=torch.float64)


def loss_fn(params, batch, scale=1.0):
    x, y = batch
    return scale * (torch.tanh(x @ params["a"]) @ params["b"] - y).square().mean()


def noisy_loss(params, batch, key, scale):
    x, y = batch
    return loss_fn(params, (x + 0.1 * hf.random.normal(key, x.shape, dtype=x.dtype), y), scale)


def step(state, batch):
    """Momentum with decoupled decay, all of whose settings are tensors of the state."""
    return updated(state, *hf.value_and_grad(loss_fn)(state.params, batch, state.extra["scale"]))


def noisy_step(state, batch):
    """The same, on data with noise from a key of its own in each iteration."""
    key = hf.step_key(state, "noise")
    return updated(state, *hf.value_and_grad(noisy_loss)(state.params, batch, key, state.extra["scale"]))


def updated(state, loss, grads):
    memory = state.opt_state
    momentum = tree.map(lambda m, g: 0.9 * m + g, memory["momentum"], grads)
    rate, decay = memory["rate"], memory["decay"]
    params = tree.map(lambda p, m: p - rate * m - rate * decay * p, state.params, momentum)
    return state.replace(
        params=params,
        opt_state={**memory, "momentum": momentum, "count": memory["count"] + 1},
        metrics={"loss": loss.detach()},
    )


def start(rate=RATE, decay=DECAY, params=PARAMS, scale=1.0):
    memory = {"rate": rate, "decay": decay, "count": torch.zeros((), dtype=torch.int64)}
    memory["momentum"] = tree.map(torch.zeros_like, params)
    return hf.init_state(params, opt_state=memory, extra={"scale": scale})


def objective(rate, decay, a, b, *, remat=None, batches=BATCHES, step=step):
    """The loss on held out data after training."""
    return loss_fn(unroll(step, start(rate, decay, {"a": a, "b": b}), batches, remat=remat).params, HELD_OUT)


INPUTS = (RATE, DECAY, PARAMS["a"], PARAMS["b"])


def by_autograd(remat, batches=BATCHES, step=step):
    inputs = [leaf.clone().requires_grad_() for leaf in INPUTS]
    loss = objective(*inputs, remat=remat, batches=batches, step=step)
    return loss.detach(), torch.autograd.grad(loss, inputs)


def by_func(remat, batches=BATCHES, step=step):
    value = functools.partial(objective, remat=remat, batches=batches, step=step)
    grads, loss = torch.func.grad_and_value(value, argnums=(0, 1, 2, 3))(*INPUTS)
    return loss, grads


def test_unrolling_is_the_loop_that_the_driver_runs():
    """The same params, counters and keys as `run`, whose cursor alone knows the data."""
    state = start()
    loader = hf.Loader(torch.utils.data.TensorDataset(draw(20, 3), draw(20, 2)), batch_size=5, shuffle=False)
    cfg = hf.RunConfig(unit="iteration", total=4, progress=False)
    result = hf.run(noisy_step, state, loader, cfg).state
    found = unroll(noisy_step, state, loader.epoch(state.key, 0))
    assert tree.equal(found.replace(cursor=result.cursor), result)


def test_counters_advance_by_the_micro_batches_of_an_iteration():
    batch = hf.MicroBatches(tuple(BATCHES[:3]), 0, 3)
    found = unroll(lambda state, batch: state, start(), [batch, batch])
    assert found.counters == hf.Counters(2, 6)


def test_hypergradients_agree_with_finite_differences():
    """Of learning rate, weight decay and initial params, in float64 (a claim of `torch.autograd.gradcheck`)."""
    inputs = [leaf.clone().requires_grad_() for leaf in INPUTS]
    assert torch.autograd.gradcheck(functools.partial(objective, batches=BATCHES[:3]), inputs)


def test_the_gradient_of_maml_is_that_of_the_explicit_formula():
    """One step p' = p - r g(p) of least squares: the meta-gradient is (I - r H) g'(p')."""
    x, y = draw(6, 3, seed=1), draw(6, seed=2)
    held_x, held_y = draw(6, 3, seed=3), draw(6, seed=4)

    def inner(state, batch):
        x, y = batch
        grads = hf.grad(lambda w: (x @ w - y).square().mean())(state.params)
        return state.replace(params=state.params - 0.1 * grads)

    w = draw(3, seed=5).requires_grad_()
    adapted = unroll(inner, hf.init_state(w, opt_state=()), [(x, y)]).params
    (found,) = torch.autograd.grad((held_x @ adapted - held_y).square().mean(), w)
    w = w.detach()
    hessian = 2 * x.T @ x / 6
    after = w - 0.1 * 2 * x.T @ (x @ w - y) / 6
    expected = (torch.eye(3) - 0.1 * hessian).mT @ (2 * held_x.T @ (held_x @ after - held_y) / 6)
    assert torch.allclose(found, expected, rtol=1e-12)


@settings(deadline=None, max_examples=12)
@given(remat=st.one_of(st.just("sqrt"), st.integers(1, STEPS + 2)), steps=st.integers(1, STEPS), func=st.booleans())
def test_computing_again_changes_no_bit(remat, steps, func):
    """Value and gradients, by `torch.autograd` and by `torch.func`, for every length of segments."""
    route = by_func if func else by_autograd
    batches = BATCHES[:steps]
    assert tree.equal(route(remat, batches, noisy_step), by_autograd(None, batches, noisy_step))


def test_the_state_after_is_the_same_with_and_without_computing_again():
    """All of it: what is no tensor, what has no gradient, and which tensors are part of the graph."""
    whole, cut = (unroll(noisy_step, start(RATE.clone().requires_grad_()), BATCHES, remat=remat) for remat in (None, 4))
    assert tree.equal(whole, cut)
    assert [leaf.requires_grad for leaf in tree.tensors(whole)] == [leaf.requires_grad for leaf in tree.tensors(cut)]


def usual_loss(params, buffers, batch, key):
    return loss_fn(params, batch), hf.Aux(weight=len(batch[0]))


OPTIMIZERS = {
    "sgd": hf.optim.tunable(hf.optim.sgd, lr=0.1, momentum=0.9, weight_decay=0.03),
    "adamw": hf.optim.tunable(hf.optim.adamw, lr=0.03, weight_decay=0.1),
    "scheduled": hf.optim.tunable(hf.optim.adamw, lr=hf.schedules.warmup_cosine(0.1, warmup_steps=1, total_steps=4)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_hypergradients_of_the_usual_step_agree_with_finite_differences(name, micro_batches):
    """Through `make_step`, its optimiser and its average, one micro-batch and several; the same bits again."""
    optimizer, average = OPTIMIZERS[name], hf.ema(0.5)
    usual = hf.make_step(usual_loss, optimizer, average=average)
    start = hf.init_state(PARAMS, optimizer, average=average)
    several = [hf.MicroBatches(tuple(BATCHES[i : i + 3]), 0, 3) for i in range(3)]
    batches = BATCHES[:3] if micro_batches == 1 else several

    def objective(*hyper, remat=None):
        memory = start.opt_state._replace(hyper=dict(zip(start.opt_state.hyper, hyper, strict=True)))
        found = unroll(usual, start.replace(opt_state=memory), batches, remat=remat)
        return loss_fn(found.params, HELD_OUT) + loss_fn(found.averages, HELD_OUT)

    hyper = [leaf.clone().requires_grad_() for leaf in start.opt_state.hyper.values()]
    assert torch.autograd.gradcheck(objective, hyper)
    grads = [torch.autograd.grad(objective(*hyper, remat=remat), hyper) for remat in (None, 2)]
    assert tree.equal(*grads)
    # Counts are numbers here and tensors under a transform, so the last bits may differ.
    func = torch.func.grad(objective, argnums=tuple(range(len(hyper))))
    found = [func(*[leaf.detach() for leaf in hyper], remat=remat) for remat in (None, 2)]
    assert tree.equal(*found)
    assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(found[0], grads[0], strict=True))


@pytest.mark.parametrize("remat", [None, 2])
def test_extra_leaves_and_batches_have_gradients_too(remat):
    """A learned weight of the loss, and data that is to be distilled."""

    def objective(scale, x):
        batches = [(x, BATCHES[0][1]), *BATCHES[1:4]]
        return loss_fn(unroll(step, start(scale=scale), batches, remat=remat).params, HELD_OUT)

    scale, x = torch.ones((), dtype=torch.float64, requires_grad=True), BATCHES[0][0].clone().requires_grad_()
    assert torch.autograd.gradcheck(objective, (scale, x))


@pytest.mark.parametrize("remat", [None, 2])
def test_second_derivatives_agree_with_finite_differences(remat):
    def short(rate):
        return objective(rate, *INPUTS[1:], remat=remat, batches=BATCHES[:3])

    rate = RATE.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(short, (rate,))
    (first,) = torch.autograd.grad(short(rate), rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    assert torch.allclose(torch.func.grad(torch.func.grad(short))(RATE), second, rtol=1e-10)


def test_unrolled_training_can_be_mapped_over_hyperparameters():
    """Hypergradients of three learning rates at once, with and without computing again."""
    rates = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)

    def gradient(rate, remat):
        return torch.func.grad(lambda rate: objective(rate, *INPUTS[1:], remat=remat))(rate)

    expected = torch.stack([gradient(rate, None) for rate in rates])
    for remat in (None, 3):
        found = torch.func.vmap(lambda rate, remat=remat: gradient(rate, remat))(rates)
        assert torch.allclose(found, expected, rtol=1e-10)


def peak_bytes(function):
    """The most that ``function`` holds at a time beyond what it found, by the allocator's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("route", [by_autograd, by_func])
def test_memory_grows_with_the_square_root_of_the_steps(route):
    """Four times the steps need four times the memory, and twice as much where segments are computed again."""
    few, many = BATCHES[:1] * 4, BATCHES[:1] * 16
    route("sqrt", few)  # what is allocated once
    (kept_few, kept_many), (few_again, many_again) = (
        [peak_bytes(lambda remat=remat, batches=batches: route(remat, batches)) for batches in (few, many)]
        for remat in (None, "sqrt")
    )
    assert kept_many > 3 * kept_few
    assert many_again < 2 * few_again
    assert many_again < kept_many / 2


def test_a_tensor_that_the_step_closes_over_is_not_forgotten_in_silence():
    """Where steps are computed again, it would get no gradient."""
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)

    def closing(state, batch):
        new = step(state, batch)
        return new.replace(params=tree.map(lambda leaf: factor * leaf, new.params))

    state = start(RATE.clone().requires_grad_())
    assert torch.autograd.grad(unroll(closing, state, BATCHES[:2]).params["a"].sum(), factor)[0] != 0
    with pytest.raises(
        ValueError, match=r"closes over a tensor that requires grad, float64\[\].*put it into state.extra"
    ):
        unroll(closing, state, BATCHES[:2], remat=1)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler looks at its inputs, not leaves
@pytest.mark.parametrize("remat", [None, 2])
def test_a_compiled_step_can_be_unrolled(remat):
    """With the same gradients, by both routes."""
    compiled = hf.compile(step, backend="aot_eager")
    expected = tree.leaves(by_autograd(None))
    for route in (by_autograd, by_func):
        found = tree.leaves(route(remat, step=compiled))
        assert all(torch.allclose(one, other, rtol=1e-10) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("remat", "error", "words"),
    [
        (0, ValueError, "at least 1 step, got 0"),
        ("root", ValueError, "'sqrt' or None, got 'root'"),
        (1.5, TypeError, "'sqrt' or None, got 1.5"),
        (True, TypeError, "'sqrt' or None, got True"),
    ],
)
def test_what_remat_may_be(remat, error, words):
    with pytest.raises(error, match=words):
        unroll(step, start(), BATCHES, remat=remat)


def test_a_step_that_forgets_to_return_is_told_so():
    with pytest.raises(TypeError, match="must return a TrainState, got NoneType None"):
        unroll(lambda state, batch: None, start(), BATCHES)
