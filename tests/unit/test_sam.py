"""SAM: the gradient at the perturbed parameters, against a hand-written one, with one noise for both passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import random, tree
from helios_fn.nn.sharpness import sam
from helios_fn.types import Aux

F = torch.nn.functional


def params_of(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "first": torch.randn(3, 5, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "second": torch.randn(5, 2, generator=generator).to(dtype),
    }


def batch_of(dtype=torch.float32, seed=0, size=7):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(size, 3, generator=generator).to(dtype), torch.randn(size, 2, generator=generator).to(dtype)


def predict(params, x):
    return torch.tanh(x @ params["first"]) @ params["second"] * params["scale"]


def loss_fn(params, buffers, batch, key):
    x, y = batch
    loss = F.mse_loss(predict(params, x), y)
    return loss, Aux(buffers={"seen": buffers["seen"] + 1}, weight=len(x), metrics={"twice": 2 * loss})


BUFFERS = {"seen": torch.tensor(0)}
KEY = random.key(3)
grad_fn = hf.value_and_grad(loss_fn, has_aux=True)


def by_hand(params, batch, rho, eta):
    """SAM as its authors' optimiser does it: climb in place, differentiate there, climb down."""
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    live = dict(zip(sorted(params), leaves, strict=True))
    x, y = batch
    F.mse_loss(predict(live, x), y).backward()
    sizes = [1.0 if eta is None else leaf.detach().abs() + eta for leaf in leaves]
    norm = torch.cat([(size * leaf.grad).reshape(-1) for leaf, size in zip(leaves, sizes, strict=True)]).norm()
    with torch.no_grad():
        for leaf, size in zip(leaves, sizes, strict=True):
            leaf += rho * size * size * leaf.grad / (norm + 1e-12)
            leaf.grad = None
    F.mse_loss(predict(live, x), y).backward()
    return {name: leaf.grad for name, leaf in live.items()}


@settings(max_examples=40, deadline=None)
@given(rho=st.floats(0.0, 1.0), adaptive=st.booleans(), eta=st.floats(0.0, 0.1), seed=st.integers(0, 99))
def test_the_gradient_is_that_of_a_hand_written_sam(rho, adaptive, eta, seed):
    params, batch = params_of(torch.float64, seed), batch_of(torch.float64, seed)
    (loss, aux), grads = sam(rho, adaptive=adaptive, eta=eta)(grad_fn)(params, BUFFERS, batch, KEY)
    wanted = by_hand(params, batch, rho, eta if adaptive else None)
    for name in params:
        torch.testing.assert_close(grads[name], wanted[name], rtol=1e-9, atol=1e-12)
    (plain_loss, plain_aux), _ = grad_fn(params, BUFFERS, batch, KEY)
    assert tree.equal((loss, aux), (plain_loss, plain_aux))


def test_a_radius_of_zero_changes_no_bit():
    params, batch = params_of(), batch_of()
    assert tree.equal(sam(0.0)(grad_fn)(params, BUFFERS, batch, KEY), grad_fn(params, BUFFERS, batch, KEY))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("adaptive", [False, True])
def test_it_is_pure_and_keeps_dtypes(adaptive, dtype):
    params, batch = params_of(dtype), batch_of(dtype)
    sharp = sam(0.1, adaptive=adaptive)(grad_fn)
    inputs = (params, BUFFERS, batch, KEY)
    before, generator = tree.digest(inputs), torch.get_rng_state()
    once, again = sharp(*inputs), sharp(*inputs)
    assert tree.equal(once, again)
    assert tree.digest(inputs) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(leaf.dtype is dtype and not leaf.requires_grad for leaf in tree.leaves(once[1]))


def test_a_zero_gradient_gives_a_zero_offset():
    constant = hf.value_and_grad(lambda p, b, batch, key: ((0 * p["w"]).sum(), None), has_aux=True)
    _, grads = sam(0.1)(constant)({"w": torch.ones(2)}, None, None, KEY)
    assert torch.equal(grads["w"], torch.zeros(2))


def test_both_passes_see_the_same_noise_whoever_opens_the_scope():
    masks = []

    def noisy(params, buffers, batch, key):
        masks.append(F.dropout(torch.ones(50), 0.5))
        return (params["w"] * masks[-1]).sum() ** 2, None

    sharp = sam(0.1)(hf.value_and_grad(noisy, has_aux=True))
    params = {"w": torch.ones(50)}
    sharp(params, None, None, KEY)
    with random.scope(KEY):
        sharp(params, None, None, KEY)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert len(masks) == 4


def test_the_second_pass_gets_the_buffers_of_the_start():
    seen = []

    def watching(params, buffers, batch, key):
        seen.append(int(buffers["seen"]))
        return loss_fn(params, buffers, batch, key)

    (_, aux), _ = sam(0.1)(hf.value_and_grad(watching, has_aux=True))(params_of(), BUFFERS, batch_of(), KEY)
    assert seen == [0, 0]
    assert int(aux.buffers["seen"]) == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_is_mapped_over_members(adaptive):
    sharp = sam(0.1, adaptive=adaptive)(grad_fn)
    members = [params_of(seed=seed) for seed in range(3)]
    many = tree.map(lambda *leaves: torch.stack(leaves), *members)
    batch = batch_of()
    found = torch.func.vmap(lambda params: sharp(params, BUFFERS, batch, KEY)[1])(many)
    for i, params in enumerate(members):
        _, wanted = sharp(params, BUFFERS, batch, KEY)
        for name in wanted:
            torch.testing.assert_close(found[name][i], wanted[name], rtol=1e-5, atol=1e-6)


def test_it_compiles_into_one_graph():
    sharp = sam(0.1, adaptive=True)(grad_fn)
    torch._dynamo.reset()
    compiled = torch.compile(sharp, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            inputs = params_of(seed=seed), BUFFERS, batch_of(seed=seed), KEY
            (loss, aux), grads = compiled(*inputs)
            (wanted_loss, wanted_aux), wanted = sharp(*inputs)
            torch.testing.assert_close((loss, grads), (wanted_loss, wanted), rtol=1e-5, atol=1e-6)
            assert aux.weight == wanted_aux.weight


def test_an_outer_derivative_takes_the_offset_for_a_constant():
    batch = batch_of(torch.float64)
    sharp = sam(0.1)(grad_fn)
    params = params_of(torch.float64)

    def total(scale):
        _, grads = sharp({**params, "scale": scale}, BUFFERS, batch, KEY)
        return grads["scale"]

    _, first = grad_fn(params, BUFFERS, batch, KEY)
    norm = torch.cat([leaf.reshape(-1) for leaf in tree.leaves(first)]).norm()
    offset = tree.map(lambda grad: 0.1 * grad / (norm + 1e-12), first)

    def fixed(scale):
        away = tree.map(torch.add, {**params, "scale": scale}, offset)
        _, grads = grad_fn(away, BUFFERS, batch, KEY)
        return grads["scale"]

    found, wanted = (torch.func.grad(function)(params["scale"]) for function in (total, fixed))
    torch.testing.assert_close(found, wanted)


def test_a_run_with_it_resumes_from_any_state_and_accumulates_exactly():
    """The wrapper keeps nothing: a copy of a state goes on with the same bits, several micro-batches included."""
    optimizer = hf.optim.sgd(0.05, momentum=0.9)
    sharp = sam(0.05)(grad_fn)

    def step(state, batch):
        mean = hf.microsteps(sharp, state, batch)
        params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params, weight=mean.weight)
        return state.replace(params=params, opt_state=opt_state, buffers=mean.buffers)

    batches = [
        hf.MicroBatches((batch_of(seed=i), batch_of(seed=50 + i, size=3)), start=0, count=2, reduction="tree")
        for i in range(4)
    ]
    states = [hf.init_state(params_of(), optimizer, buffers=BUFFERS)]
    for batch in batches:
        states.append(step(states[-1], batch))
    for i, state in enumerate(states[:-1]):
        state = tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
        for batch in batches[i:]:
            state = step(state, batch)
        assert tree.equal(state.params, states[-1].params)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sam(-0.1), ValueError, "rho must be finite and not negative, got -0.1"),
        (lambda: sam(float("inf")), ValueError, "rho must be finite"),
        (lambda: sam("big"), TypeError, "rho must be a number, got 'big'"),
        (lambda: sam(0.1, eta=-1), ValueError, "eta must be finite"),
        (lambda: sam(grad_fn), TypeError, "rho must be a number"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
