"""Keyed mode: torch's random functions become functions of a key, in every transform, or are refused by name."""

from __future__ import annotations

import inspect
import random
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import init
from torch.overrides import get_overridable_functions
from torch.utils.checkpoint import checkpoint

import helios_fn.random as hr
from helios_fn.random import fold_in, generator, key, keyed, scope, split
from helios_fn.random.portable import table

KEY = fold_in(key(6691), "keyed")
X = torch.linspace(-1, 1, 48).reshape(3, 4, 4)
RATES = X.abs() + 0.1
MHA = nn.MultiheadAttention(4, 2, dropout=0.3)
D = torch.distributions


def planes(x):
    """More of x, for pooling: (2, 8, 8, 8)."""
    return x.flatten().repeat(22)[:1024].reshape(2, 8, 8, 8)


CASES = {
    F.dropout: lambda x: F.dropout(x, 0.3),
    F.dropout1d: lambda x: F.dropout1d(x, 0.3),
    F.dropout2d: lambda x: F.dropout2d(x[None], 0.3),
    F.dropout3d: lambda x: F.dropout3d(x[None, None], 0.3),
    F.alpha_dropout: lambda x: F.alpha_dropout(x, 0.3, True),
    F.feature_alpha_dropout: lambda x: F.feature_alpha_dropout(x, 0.3, True),
    torch.dropout: lambda x: torch.dropout(x, 0.3, True),
    torch.dropout_: lambda x: torch.dropout_(x + 0, 0.3, True),
    torch.native_dropout: lambda x: torch.native_dropout(x, 0.3, True),
    torch.feature_dropout: lambda x: torch.feature_dropout(x, 0.3, True),
    torch.feature_dropout_: lambda x: torch.feature_dropout_(x + 0, 0.3, True),
    torch.alpha_dropout: lambda x: torch.alpha_dropout(x, 0.3, True),
    torch.alpha_dropout_: lambda x: torch.alpha_dropout_(x + 0, 0.3, True),
    torch.feature_alpha_dropout: lambda x: torch.feature_alpha_dropout(x, 0.3, True),
    torch.feature_alpha_dropout_: lambda x: torch.feature_alpha_dropout_(x + 0, 0.3, True),
    F.scaled_dot_product_attention: lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3, is_causal=True),
    F.multi_head_attention_forward: lambda x: MHA(x, x, x),
    F.gumbel_softmax: lambda x: F.gumbel_softmax(x, hard=True),
    F.rrelu: lambda x: F.rrelu(x, training=True),
    torch.rrelu: lambda x: torch.rrelu(x, 0.1, 0.3, True),
    torch.rrelu_: lambda x: torch.rrelu_(x + 0, 0.1, 0.3, True),
    torch.rand: lambda x: torch.rand(3, 2),
    torch.randn: lambda x: torch.randn((3, 2), dtype=torch.complex64),
    torch.randint: lambda x: torch.randint(3, 10, (5,)),
    torch.randperm: lambda x: torch.randperm(7),
    torch.rand_like: lambda x: torch.rand_like(x),
    torch.randn_like: lambda x: torch.randn_like(x, dtype=torch.float64),
    torch.randint_like: lambda x: torch.randint_like(x, 7),
    torch.normal: lambda x: (torch.normal(x, RATES), torch.normal(1.0, RATES), torch.normal(0.0, 2.0, (3,))),
    torch.bernoulli: lambda x: torch.bernoulli(RATES.clamp(0, 1)),
    torch.Tensor.bernoulli: lambda x: x.bernoulli(0.3),
    torch.multinomial: lambda x: torch.multinomial(RATES[0], 3),
    torch.Tensor.multinomial: lambda x: RATES[0].multinomial(9, True),
    torch.Tensor.uniform_: lambda x: torch.empty(3).uniform_(-1, 2),
    torch.Tensor.normal_: lambda x: x.new_empty(3).normal_(1, 2),
    torch.Tensor.log_normal_: lambda x: torch.empty_like(x).log_normal_(),
    torch.Tensor.bernoulli_: lambda x: x * x.new_empty((3, 1, 1)).bernoulli_(0.8).div_(0.8),
    torch.Tensor.exponential_: lambda x: x.new(3).exponential_(2.0),
    torch.Tensor.geometric_: lambda x: torch.empty(5).geometric_(0.3),
    torch.Tensor.cauchy_: lambda x: torch.empty(5).cauchy_(),
    torch.Tensor.random_: lambda x: torch.empty(5, dtype=torch.int64).random_(3, 9),
    F.fractional_max_pool2d: lambda x: F.fractional_max_pool2d(planes(x), 2, output_size=5),
    F.fractional_max_pool2d_with_indices: lambda x: F.fractional_max_pool2d(
        planes(x), 2, output_size=5, return_indices=True
    ),
    F.fractional_max_pool3d: lambda x: F.fractional_max_pool3d(planes(x)[:, None], 2, output_size=5),
    F.fractional_max_pool3d_with_indices: lambda x: F.fractional_max_pool3d(
        planes(x)[:, None], 2, output_size=5, return_indices=True
    ),
    "Normal": lambda x: D.Normal(x, RATES).rsample(),
    "Uniform": lambda x: D.Uniform(0.0, RATES).rsample(),
    "Categorical": lambda x: D.Categorical(probs=RATES).sample(),
    "Bernoulli": lambda x: D.Bernoulli(torch.full((3,), 0.5)).sample(),
    "Exponential": lambda x: D.Exponential(RATES).rsample(),
    "Laplace": lambda x: D.Laplace(x, RATES).rsample(),
    "Cauchy": lambda x: D.Cauchy(x, RATES).rsample(),
    "MultivariateNormal": lambda x: D.MultivariateNormal(x[0, 0], torch.eye(4)).rsample(),
    "svd_lowrank": lambda x: torch.svd_lowrank(x[0], 2)[1],
}
IDS = [name if isinstance(name, str) else getattr(name, "__name__", repr(name)) for name in CASES]
every_case = pytest.mark.parametrize("function", CASES.values(), ids=IDS)


def run(function, k, *args):
    with keyed(k):
        return function(*args)


def tensors(result):
    return list(result) if isinstance(result, tuple) else [result]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


def tagged() -> set[str]:
    """The operators of which torch says that they are random."""
    found = set()
    for qualified in torch._C._dispatch_get_all_op_names():
        if qualified.startswith("aten::"):
            name, _, overload = qualified[6:].partition(".")
            if torch.Tag.nondeterministic_seeded in getattr(getattr(torch.ops.aten, name), overload or "default").tags:
                found.add(name)
    return found


def test_every_function_whose_operator_is_random_is_covered_or_refused():
    """Torch itself is asked; so a new version of torch cannot bring a random function that is silently missed."""
    # They choose, mask, or attend without dropout, and draw nothing.
    harmless = {
        "_fused_sdp_choice", "_nested_tensor_softmax_with_shape", "_flash_attention_forward_no_dropout_inplace"
    }  # fmt: skip
    known = {*table.STAND_INS, *table.REFUSED, *table.RECURRENT, *table.KERNELS}
    names = tagged() - harmless
    assert len(names) > 50
    for owner in (torch, torch.Tensor, F, torch._C._nn, torch._C._VariableFunctions, torch.special, torch.linalg):
        for name in names:
            function = getattr(owner, name, None)
            if callable(function):
                assert function in known, f"{name} of {owner}"


def mentioned(function, depth: int = 4) -> set[str]:
    """The names that a function's body uses, and those of the functions of torch that it calls."""
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    called = [function.__globals__.get(name) for name in names]
    for inner in called:
        if depth and inspect.isfunction(inner) and inner.__module__.startswith("torch"):
            names |= mentioned(inner, depth - 1)
    return names


def test_every_composite_that_calls_a_random_function_is_covered():
    """What looks for overrides is handed to the mode whole, and its inner calls would be missed."""
    seen_inside = {torch.lobpcg, torch.pca_lowrank, torch.svd_lowrank}  # they do not look, see the case "svd_lowrank"
    random_names = {getattr(function, "__name__", "") for function in (*table.STAND_INS, *table.REFUSED)} - {"fn"}
    for owner, functions in get_overridable_functions().items():
        for function in functions:
            inner = inspect.unwrap(function) if inspect.isfunction(function) else None
            if owner is not torch.Tensor and inspect.isfunction(inner) and mentioned(inner) & random_names:
                assert {function, inner} & {*table.STAND_INS, *table.REFUSED, *seen_inside}, function
    for name, function in vars(init).items():
        if inspect.isfunction(function) and "has_torch_function_variadic" in mentioned(function, 0):
            assert function in table.REFUSED or name in ("constant_",), name


def test_every_stand_in_has_a_case():
    assert not set(table.STAND_INS) - set(CASES)


@every_case
def test_a_draw_is_a_function_of_the_key_and_leaves_no_trace(function):
    state = torch.get_rng_state()
    first = run(function, KEY, X)
    assert equal(run(function, KEY, X), first)
    assert torch.equal(torch.get_rng_state(), state)
    with scope(key(1)):
        native = function(X)
    for ours, torchs in zip(tensors(first), tensors(native), strict=True):
        assert (ours.shape, ours.dtype) == (torchs.shape, torchs.dtype)


def test_other_keys_give_other_draws():
    for name, function in CASES.items():
        if name == "svd_lowrank":
            continue  # it hardly depends on what is drawn
        assert not all(equal(run(function, KEY, X), run(function, k, X)) for k in split(KEY, 6)), name


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of pooling
@pytest.mark.filterwarnings("ignore:torch.searchsorted.*non-contiguous:UserWarning")  # of multinomial
@every_case
def test_lanes_of_a_map_over_keys_draw_what_each_key_draws(function):
    """With one input for all lanes, and with one for each; the distributions are built inside."""
    keys = split(KEY, 3)
    alone = [tensors(run(function, k, X)) for k in keys]
    batched = torch.stack([X, X, X])
    mapped = [torch.vmap(lambda k, x: run(function, k, x))(keys, batched)]
    if function not in [CASES[name] for name in IN_PLACE]:
        mapped.append(torch.vmap(lambda k: run(function, k, X))(keys))
    for result in mapped:
        for lane in range(3):
            for got, expected in zip(tensors(result), alone[lane], strict=True):
                torch.testing.assert_close(got[lane], expected)


IN_PLACE = {
    torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_, torch.rrelu_
}  # fmt: skip


def test_lanes_cannot_be_written_into_a_tensor_that_they_share():
    """Torch says so; native in-place dropout under vmap with randomness "different" has the same limit."""
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda k: run(lambda: F.dropout(X + 0, inplace=True), k))(split(KEY))


def test_compiled_draws_are_the_eager_ones():
    """All functions in one region: also those that the compiler does not show to function modes by itself."""

    chosen = [case for name, case in CASES.items() if not isinstance(name, str) or name in ("Normal", "Laplace")]

    def everything(k, x):
        with keyed(k):
            return [function(x) for function in chosen]

    compiled = torch.compile(everything, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(KEY, X), everything(KEY, X), strict=True):
        assert equal(got, expected)
    assert not equal(compiled(key(1), X)[0], compiled(KEY, X)[0])


def test_maps_and_gradients_of_keyed_code_compile():
    def loss(w, k):
        return run(lambda: (F.dropout(X * w, 0.5) * torch.rand_like(X)).square().sum(), k)

    w, keys = torch.tensor(2.0), split(KEY, 3)
    expected = torch.stack([torch.func.grad(loss)(w, k) for k in keys])
    mapped = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
    torch.testing.assert_close(mapped(w, keys), expected)
    torch.testing.assert_close(torch.compile(mapped, backend="aot_eager", fullgraph=True)(w, keys), expected)


@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.soak)])
def test_a_compiled_region_has_the_same_masks_forward_and_backward(backend):
    """Also where the backward pass is a graph of its own, cut from the forward one as inductor cuts it."""

    def step(k, x):
        with keyed(k):
            return F.dropout(F.dropout(x, 0.1).relu(), 0.5)

    x = torch.rand(50, 30).requires_grad_()
    outputs = [function(KEY, x) for function in (step, torch.compile(step, backend=backend, fullgraph=True))]
    grads = [torch.autograd.grad(output.sum(), x)[0] for output in outputs]
    torch.testing.assert_close(*outputs)
    assert torch.equal(outputs[0] == 0, outputs[1] == 0)
    assert torch.equal(grads[0], grads[1])


@given(st.integers(0, 2**32), st.floats(0.01, 0.99), st.integers(0, 3), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=20, deadline=None)
def test_call_number_n_draws_from_the_key_folded_with_n(seed, p, before, dtype):
    """And dropout is the portable bernoulli, times a scale."""
    x = torch.rand(40, dtype=dtype) + 1
    with keyed(key(seed)):
        [torch.rand(1) for _ in range(before)]
        F.dropout(x, p, training=False), F.dropout(x, 0.0)  # no draws
        output = F.dropout(x, p)
        uniform = torch.rand(5)
    keep = hr.bernoulli(fold_in(key(seed), before), (40,), p=1 - p)
    assert torch.equal(output != 0, keep)
    torch.testing.assert_close(output, x * keep / (1 - p))
    assert torch.equal(uniform, hr.uniform(fold_in(key(seed), before + 1), (5,)))


def test_modules_in_place_and_in_eval_mode():
    x = torch.ones(100)
    with keyed(KEY):
        output = nn.Dropout(0.5, inplace=True)(x)
        assert output is x
        assert nn.Dropout(0.5).eval()(x) is x
    assert 0 < (x == 0).sum() < 100


def test_whole_channels_are_dropped_as_in_torch():
    x = torch.ones(6, 5, 4, 4)
    for dropped in (run(F.dropout2d, KEY, x), run(F.feature_alpha_dropout, KEY, x, 0.5, True)):
        assert (dropped == dropped[:, :, :1, :1]).all()
        assert len(dropped[:, :, 0, 0].unique()) == 2
    assert run(F.dropout1d, KEY, torch.ones(5, 30)).unique(dim=1).shape == (5, 1)
    assert run(F.dropout3d, KEY, x[:, None].repeat(1, 3, 1, 1, 1)).shape == (6, 3, 5, 4, 4)


MOMENTS = {
    "exponential": (lambda: torch.empty(20_000).exponential_(2.0), 0.5, 0.5),
    "geometric": (lambda: torch.empty(20_000).geometric_(0.25), 4.0, 12**0.5),
    "log normal": (lambda: torch.empty(20_000).log_normal_(0.0, 0.5).log(), 0.0, 0.5),
    "random": (lambda: torch.empty(20_000).random_(0, 10), 4.5, 8.25**0.5),
    "wide integers": (lambda: torch.randint(0, 3 << 40, (20_000,)).double() / (3 << 40), 0.5, 12**-0.5),
    "all integers": (lambda: torch.empty(20_000, dtype=torch.int64).random_().double() / 2**63, 0.5, 12**-0.5),
    "alpha dropout": (lambda: F.alpha_dropout(torch.randn(20_000), 0.2, True), 0.0, 1.0),
    "replacement": (lambda: torch.multinomial(torch.tensor([1.0, 0.0, 3.0]), 20_000, True).float(), 1.5, 0.75**0.5),
    "without": (lambda: torch.multinomial(torch.tensor([[1.0, 0.0, 3.0]] * 20_000), 1).float(), 1.5, 0.75**0.5),
    "gumbel": (lambda: F.gumbel_softmax(torch.zeros(20_000, 2), hard=True)[:, 0], 0.5, 0.5),
}


@pytest.mark.parametrize("case", MOMENTS)
def test_draws_are_distributed_as_they_should(case):
    draw, mean, std = MOMENTS[case]
    values = run(draw, KEY).double()
    assert abs(values.mean() - mean) < 5 * std / 20_000**0.5
    assert abs(values.std() / std - 1) < 0.05


def test_cauchy_draws_have_the_right_quartiles():
    quartiles = run(lambda: torch.empty(20_000).cauchy_(1.0, 2.0), KEY).quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([-1.0, 1.0, 3.0]), atol=0.15, rtol=0)


def test_indices_without_replacement_are_different_and_never_of_weight_zero():
    weights = torch.tensor([1.0, 0.0, 3.0, 1e-30, 2.0]).repeat(500, 1)
    drawn = run(torch.multinomial, KEY, weights, 3)
    assert all(len(set(row)) == 3 and 1 not in row for row in drawn.tolist())


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": torch.tensor([[True, False, True], [True, True, False], [False, False, False]])},
    "added mask": {"attn_mask": torch.tensor([[0.0, -1.0, 2.0]] * 3)},
    "scale": {"scale": 0.3},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
def test_attention_is_torchs_but_for_the_dropout(options):
    """With so small a probability nothing is dropped, and the formula stands alone."""
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    if "enable_gqa" not in options:
        q = q[:, :2]
    ours = run(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=1e-12, **options), KEY)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, **options))


MULTIHEAD = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {"need_weights": False}),
    "other widths": ({"kdim": 6, "vdim": 5, "bias": False}, {"average_attn_weights": False}),
    "bias and zero": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "masks": ({}, {"key_padding_mask": torch.tensor([[False, False, True]] * 2), "attn_mask": torch.eye(3).bool()}),
    "causal": ({}, {"is_causal": True, "attn_mask": torch.ones(3, 3).triu(1).bool(), "need_weights": False}),
}


@pytest.mark.parametrize("case", MULTIHEAD)
@pytest.mark.parametrize("batched", [True, False])
def test_multi_head_attention_is_torchs_but_for_the_dropout(case, batched):
    made, called = MULTIHEAD[case]
    module = nn.MultiheadAttention(8, 2, dropout=1e-12, **made)
    widths = 8, made.get("kdim", 8), made.get("vdim", 8)
    inputs = [torch.randn(*((2, 3) if made.get("batch_first") else (3, 2)), width) for width in widths]
    if not batched:
        inputs = [x[:, 0] for x in inputs]
        called = (
            {**called, "key_padding_mask": called["key_padding_mask"][0]} if "key_padding_mask" in called else called
        )
    ours = run(lambda: module(*inputs, **called), KEY)
    module.dropout = 0.0
    for got, expected in zip(ours, module(*inputs, **called), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected)


def test_dropped_attention_weights_are_the_ones_that_come_back():
    weights = run(lambda: MHA(X, X, X, average_attn_weights=False)[1], KEY)
    assert 0.1 < (weights == 0).float().mean() < 0.5


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: torch.poisson(RATES), "poisson"),
        (lambda: torch.binomial(RATES, RATES), "binomial"),
        (lambda: D.Gamma(RATES, 1.0).rsample(), "_standard_gamma"),
        (lambda: D.Dirichlet(RATES).sample(), "_sample_dirichlet"),
        (lambda: LSTM(X), "lstm"),
        (lambda: GRU(PACKED), "gru"),
        (lambda: torch.ops.aten.rand([2]), "rand"),
        (lambda: torch.ops.aten.bernoulli.p(RATES, 0.5), "bernoulli"),
        (lambda: nn.Linear(2, 2), "kaiming_uniform_"),
        (lambda: torch._scaled_dot_product_flash_attention_for_cpu(X[None], X[None], X[None], 0.1), "flash"),
    ],
)
def test_what_cannot_be_keyed_is_refused_by_name_with_the_remedy(call, name):
    with pytest.raises(TypeError, match=rf"{name}.*draws='scope'"):
        run(call, KEY)


SINGLE, LSTM, GRU = nn.RNN(4, 4), nn.LSTM(4, 4, 2, dropout=0.1), nn.GRU(4, 4, 3, dropout=0.1)
PACKED = nn.utils.rnn.pack_padded_sequence(X, [3, 2, 2, 1])


def test_what_draws_nothing_is_let_pass():
    with keyed(KEY):
        SINGLE(X), LSTM.eval()(X), GRU.eval()(PACKED)
        torch.ops.aten.add(X, X), F.scaled_dot_product_attention(X, X, X), MHA.eval()(X, X, X)
        made = torch.rand(3, generator=generator(key(4)))
    LSTM.train(), GRU.train(), MHA.train()
    assert torch.equal(made, torch.rand(3, generator=generator(key(4))))


@pytest.mark.parametrize("options", [{"out": torch.empty(2)}, {"pin_memory": True}, {"layout": torch.sparse_coo}])
def test_options_without_a_counterpart_are_refused(options):
    (name,) = options
    with pytest.raises(TypeError, match=f"leave {name} out"):
        run(lambda: torch.rand(2, **options), KEY)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.manual_seed(3)])
def test_draws_that_cannot_be_seen_are_found_at_the_end(draw):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with pytest.raises(
            RuntimeError, match=r"global generator of (torch|random|numpy\.random), so it is not a func"
        ):
            run(draw, KEY)
    finally:
        torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])


def test_the_innermost_context_decides():
    with keyed(KEY):
        first = torch.rand(3)
        with scope(key(1)):
            scoped = torch.rand(3), random.random()
        with keyed(key(2)):
            inner = torch.rand(3)
        second = torch.rand(3)
    with scope(key(1)):
        assert torch.equal(scoped[0], torch.rand(3))
        with keyed(KEY):
            assert torch.equal(torch.rand(3), first)
    assert torch.equal(inner, hr.uniform(fold_in(key(2), 0), 3))
    assert torch.equal(second, hr.uniform(fold_in(KEY, 1), 3))


def test_a_context_counts_anew_each_time_and_closes_after_an_exception():
    context = keyed(KEY)

    def fail():
        with context:
            torch.rand(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with context:
        assert torch.equal(torch.rand(2), hr.uniform(fold_in(KEY, 0), 2))
        assert np.array_equal(hr.numpy().random(2), hr.numpy_generator(KEY).random(2))
        with pytest.raises(RuntimeError, match="open already"):
            context.__enter__()
    with pytest.raises(RuntimeError, match="no scope is open"):
        hr.numpy()
    with pytest.raises(TypeError, match="int64 tensor"):
        keyed(0)


def test_recomputed_code_draws_the_same_compiled_and_is_refused_eager():
    """By the time of the backward pass the context is closed, so eager code would recompute with other draws."""

    def loss(x, k):
        with keyed(k):
            return checkpoint(lambda x: F.dropout(x.sin(), 0.5).square(), x, use_reentrant=False).sum()

    x = torch.rand(40).requires_grad_()
    with pytest.raises(TypeError, match=r"torch\.utils\.checkpoint would run this code again"):
        loss(x, KEY)
    with keyed(fold_in(KEY, 0)):  # the function that the operator runs is one call, with draws of its own
        plain = F.dropout(x.sin(), 0.5).square().sum()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, KEY)
    assert torch.equal(torch.autograd.grad(compiled, x)[0], torch.autograd.grad(plain, x)[0])


def test_branches_of_a_conditional_are_keyed():
    def choose(x, k):
        with keyed(k):
            chosen = torch.cond(x.sum() > 0, lambda x: F.dropout(x, 0.5), lambda x: x + torch.rand_like(x), (x,))
            return chosen, torch.rand(3)

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    x = torch.ones(30)
    with keyed(fold_in(KEY, 0)):
        first = F.dropout(x, 0.5)
    with keyed(fold_in(KEY, 1)):
        second = torch.rand_like(x) - x
    assert equal(compiled(x, KEY), (first, hr.uniform(fold_in(KEY, 2), 3)))
    assert torch.equal(compiled(-x, KEY)[0], second)


def test_a_compiled_function_may_be_called_inside():
    def noisy(x):
        return F.dropout(x, 0.5) + torch.rand_like(x)

    with keyed(KEY):
        expected = noisy(X), noisy(X)
    with keyed(KEY):
        compiled = torch.compile(noisy, backend="eager")
        assert equal((compiled(X), compiled(X)), expected)


def test_a_generator_of_keys_on_another_device_is_not_needed_to_draw_there():
    assert run(lambda: torch.rand(2, device="meta"), KEY).is_meta
    with torch.device("meta"), keyed(KEY):
        assert torch.rand(2).is_meta
