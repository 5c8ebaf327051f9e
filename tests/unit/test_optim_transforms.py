"""Gradient transforms and wrappers of optimisers against the same laws, and each against its published formula."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import optim, random, tree
from helios_fn.errors import NotTraceable
from helios_fn.optim import chain, clip_by_global_norm, clip_by_value, every, lookahead, loss_scaled, schedules, sgd
from helios_fn.optim.skip import skip_non_finite
from helios_fn.optim.transforms import (
    adaptive_clip,
    add_decayed_weights,
    ema_of_gradients,
    gradient_noise,
    keep_gradients,
    masked,
    trace,
)

TRANSFORMS = {
    "clip_by_global_norm": lambda: clip_by_global_norm(0.5),
    "clip_by_global_norm above": lambda: clip_by_global_norm(1e3),
    "clip_by_value": lambda: clip_by_value(0.3),
    "adaptive_clip": lambda: adaptive_clip(0.1),
    "add_decayed_weights": lambda: add_decayed_weights(0.1),
    "add_decayed_weights masked": lambda: add_decayed_weights(0.1, mask="!*.bias"),
    "masked norm": lambda: masked(clip_by_global_norm(0.5), "layer.*"),
    "masked trace": lambda: masked(trace(0.9), ["*", "!scale"]),
    "ema_of_gradients": lambda: ema_of_gradients(0.9),
    "ema_of_gradients biased": lambda: ema_of_gradients(0.9, debias=False),
    "trace": lambda: trace(0.9),
    "trace nesterov": lambda: trace(0.9, nesterov=True),
    "keep_gradients": keep_gradients,
    "gradient_noise": lambda: gradient_noise(0.01, seed=3),
}
RATE = schedules.warmup_cosine(0.1, 2, 9)
WRAPPED = {
    "skip": lambda: skip_non_finite(sgd(RATE, momentum=0.9, mode="loop")),
    "skip chain": lambda: skip_non_finite(chain(trace(0.5), clip_by_value(0.1), optim.adamw(RATE, mode="loop"))),
    "loss_scaled": lambda: loss_scaled(sgd(RATE, momentum=0.9, mode="loop"), growth_interval=2),
    "lookahead": lambda: lookahead(sgd(RATE, momentum=0.9, mode="loop"), 2, 0.3),
    "lookahead skip": lambda: lookahead(skip_non_finite(optim.adamw(RATE, mode="loop")), 2),
    "chain lookahead": lambda: chain(clip_by_global_norm(0.5), lookahead(sgd(RATE, mode="loop"), 3)),
}
ACCUMULATING = {
    "lookahead every": lambda: lookahead(every(2, sgd(RATE)), 2),
    "every skip": lambda: every(2, skip_non_finite(sgd(RATE))),
    "every loss_scaled": lambda: every(2, loss_scaled(sgd(RATE), growth_interval=2)),
}


def params_of(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator)
    return {
        "layer": {"bias": draw((5,)).to(dtype), "weight": draw((4, 3)).to(dtype)},
        "scale": draw(()).to(dtype),
    }


def grads_at(step, params):
    generator = torch.Generator().manual_seed(1000 + step)
    return tree.map(lambda leaf: torch.randn(leaf.shape, generator=generator).to(leaf.dtype), params)


def kinds(state):
    return tree.structure(state), [(leaf.dtype, leaf.shape) for leaf in tree.leaves(state)]


def copied(state):
    return tree.map(torch.clone, state)


def assert_close(found, wanted, rtol=2e-6):
    assert tree.structure(found) == tree.structure(wanted)
    for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


def is_pure(update, inputs):
    before, versions = tree.digest(inputs), [leaf._version for leaf in tree.leaves(inputs)]
    generator = torch.get_rng_state()
    once, again = update(*inputs), update(*inputs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert tree.digest(inputs) == before
    assert [leaf._version for leaf in tree.leaves(inputs)] == versions
    assert tree.equal(once, again)
    return once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_pure_and_its_state_and_gradients_keep_their_kinds(name, dtype):
    transform = TRANSFORMS[name]()
    params = params_of(dtype)
    state = transform.init(params)
    wanted = kinds(state)
    for step in range(3):
        grads = grads_at(step, params)
        found, state = is_pure(transform.update, (grads, state, params))
        assert kinds(state) == wanted
        assert kinds(found) == kinds(grads)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_of_several_dtypes_keep_them(name):
    transform = TRANSFORMS[name]()
    params = params_of()
    params = {"layer": tree.map(torch.Tensor.bfloat16, params["layer"]), "scale": params["scale"].double()}
    grads, state = grads_at(0, params), transform.init(params)
    found, _ = transform.update(grads, state, params)
    assert kinds(found) == kinds(grads)
    mapped, _ = torch.func.vmap(transform.update)(*lanes([(grads, state, params)]))
    assert kinds(first_lane(mapped)) == kinds(grads)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_goes_on_from_a_copy_of_any_state_with_the_same_bits(name):
    params = params_of()
    first = TRANSFORMS[name]()
    states, found = [first.init(params)], []
    for step in range(4):
        grads, state = first.update(grads_at(step, params), states[-1], params)
        states.append(state)
        found.append(grads)
    for step in range(4):
        grads, state = TRANSFORMS[name]().update(grads_at(step, params), copied(states[step]), params)
        assert tree.equal((grads, state), (found[step], states[step + 1]))


def lanes(trees):
    """Trees stacked into one."""
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def first_lane(stacked, index=0):
    return tree.map(lambda leaf: leaf[index], stacked)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_mapped_transform_is_close_to_separate_ones(name):
    transform = TRANSFORMS[name]()
    members = [params_of(seed=seed) for seed in range(3)]
    states = [transform.init(params) for params in members]
    many, mapped = lanes(states), torch.func.vmap(transform.update)
    for step in range(2):
        grads = [grads_at(10 * step + i, params) for i, params in enumerate(members)]
        found, many = mapped(lanes(grads), many, lanes(members))
        for i, params in enumerate(members):
            wanted, states[i] = transform.update(grads[i], states[i], params)
            assert_close(first_lane((found, many), i), (wanted, states[i]))


def compiled(function, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


def soaked(names, ordinary):
    """All names, those that are not ordinary for the long run only: the compiler takes a second each."""
    return [pytest.param(name, marks=() if name in ordinary else pytest.mark.soak) for name in names]


@pytest.mark.parametrize("name", soaked(TRANSFORMS, ("ema_of_gradients", "masked norm")))
def test_a_transform_compiles_into_one_graph_for_the_whole_run(name):
    transform = TRANSFORMS[name]()
    update = compiled(transform.update, "aot_eager" if name == "ema_of_gradients" else "eager")
    params = params_of()
    state = traced_state = transform.init(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            grads = grads_at(step, params)
            wanted, state = transform.update(grads, state, params)
            found, traced_state = update(grads, traced_state, params)
            assert_close((found, traced_state), (wanted, state))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_has_the_derivatives_of_finite_differences(name):
    transform = TRANSFORMS[name]()
    params = params_of(torch.float64)
    leaves, treespec = tree.flatten((grads_at(0, params), params))
    state = transform.init(params)

    def function(*leaves):
        grads, params = tree.unflatten(treespec, leaves)
        found, after = transform.update(grads, state, params)
        found, _ = transform.update(found, after, params)
        return tuple(tree.leaves(found))

    assert torch.autograd.gradcheck(function, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("name", [*TRANSFORMS, *WRAPPED])
def test_the_description_is_the_call_without_addresses(name):
    made = {**TRANSFORMS, **WRAPPED}[name]
    assert repr(made()) == repr(made())
    assert "0x" not in repr(made())
    names = {**vars(optim), **vars(schedules), **globals()}
    assert repr(eval(repr(made()), names)) == repr(made())


# The wrappers: the same laws as every optimiser has


def trained(optimizer, params, state, start, stop, **keywords):
    for step in range(start, stop):
        params, state = optimizer.update(grads_at(step, params), state, params, **keywords)
    return params, state


@pytest.mark.parametrize("name", [*WRAPPED, *ACCUMULATING])
def test_a_wrapped_optimiser_is_pure_with_a_fixed_structure_and_replays_exactly(name):
    make = {**WRAPPED, **ACCUMULATING}[name]
    optimizer, params = make(), params_of()
    points = [(params, optimizer.init(params))]
    wanted = kinds(points[0][1])
    for step in range(6):
        params, state = is_pure(optimizer.update, (grads_at(step, params), points[-1][1], params))
        assert kinds(state) == wanted
        points.append((params, state))
    for step, point in enumerate(points):
        assert tree.equal(trained(make(), *copied(point), step, 6), points[-1])


@pytest.mark.parametrize("name", WRAPPED)
def test_a_donated_update_has_the_same_bits_and_keeps_its_gradients(name):
    optimizer, params = WRAPPED[name](), params_of()
    state = optimizer.init(params)
    mine = copied((params, state))
    for step in range(6):
        grads = grads_at(step, params)
        before = tree.digest(grads)
        params, state = optimizer.update(grads, state, params)
        mine = optimizer.update(grads, mine[1], mine[0], donate=True)
        assert tree.equal(mine, (params, state))
        assert tree.digest(grads) == before


@pytest.mark.parametrize("name", WRAPPED)
def test_a_mapped_wrapper_is_close_to_separate_ones(name):
    optimizer = WRAPPED[name]()
    members = [params_of(seed=seed) for seed in range(2)]
    states = [optimizer.init(params) for params in members]
    many = lanes(list(zip(members, states, strict=True)))
    mapped = torch.func.vmap(optimizer.update)
    for step in range(4):
        grads = [grads_at(10 * step + i, params) for i, params in enumerate(members)]
        many = mapped(lanes(grads), many[1], many[0])
        for i in range(2):
            members[i], states[i] = optimizer.update(grads[i], states[i], members[i])
            assert_close(first_lane(many, i), (members[i], states[i]), rtol=1e-5)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("name", soaked(WRAPPED, ("skip",)))
def test_a_wrapper_compiles_into_one_graph_for_the_whole_run(name, donate):
    optimizer, params = WRAPPED[name](), params_of()
    update = compiled(lambda grads, state, params: optimizer.update(grads, state, params, donate=donate))
    state = optimizer.init(params)
    mine = copied((params, state))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            grads = grads_at(step, params)
            if step == 2 and name.startswith(("skip", "lookahead skip", "loss_scaled")):
                grads["scale"] = grads["scale"] * math.nan
            params, state = optimizer.update(grads, state, params)
            places = {leaf.data_ptr() for leaf in tree.leaves(mine)}
            mine = update(grads, mine[1], mine[0])
            assert_close(mine, (params, state), rtol=1e-5)
            if donate and "chain" not in name:
                assert {leaf.data_ptr() for leaf in tree.leaves(mine)} == places


# Each by its formula


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    clipping=st.floats(0.01, 1.0),
    scale=st.floats(1e-4, 10.0),
    seed=st.integers(0, 99),
)
def test_adaptive_clipping_bounds_the_gradient_of_each_unit_by_its_weights(shape, clipping, scale, seed):
    """Unit by unit, in Python numbers: rows of matrices and filters, vectors and scalars as a whole."""
    generator = torch.Generator().manual_seed(seed)
    param = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    clip = adaptive_clip(clipping, eps=1e-3)
    found, _ = clip.update([grad], clip.init([param]), [param])
    rows = list(zip(grad, param, found[0], strict=True)) if len(shape) > 1 else [(grad, param, found[0])]
    for g, p, new in rows:
        bound = clipping * max(p.norm().item(), 1e-3)
        wanted = g if g.norm().item() < bound else g * (bound / g.norm().item())
        torch.testing.assert_close(new, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["foreach", "loop"])
def test_added_decay_before_sgd_has_the_bits_of_its_own_weight_decay(mode):
    params = params_of()
    both = chain(add_decayed_weights(0.1), sgd(0.05, momentum=0.9, mode=mode))
    alone = sgd(0.05, momentum=0.9, weight_decay=0.1, mode=mode)
    left, right = (trained(o, params, o.init(params), 0, 5)[0] for o in (both, alone))
    assert tree.equal(left, right)


def test_masks_choose_parameters_by_name():
    params = {"a": {"bias": torch.ones(2), "weight": torch.ones(2)}, "b.weight": torch.ones(1), "c": [torch.ones(1)]}
    zeros = tree.map(torch.zeros_like, params)
    cases = {
        "*.bias": [1, 0, 0, 0],
        ("!*.bias",): [0, 1, 1, 1],
        ("a.*", "!*.bias"): [0, 1, 0, 0],
        "c.0": [0, 0, 0, 1],
        (lambda name: name.endswith("weight")): [0, 1, 1, 0],
    }
    for mask, wanted in cases.items():
        decay = add_decayed_weights(1.0, mask=list(mask) if isinstance(mask, tuple) else mask)
        found, _ = decay.update(zeros, decay.init(params), params)
        assert [int(leaf[0]) for leaf in tree.leaves(found)] == wanted


def test_a_masked_transform_sees_only_what_is_chosen():
    params = params_of()
    both = masked(clip_by_global_norm(0.1), "layer.*")
    clip = clip_by_global_norm(0.1)
    grads = grads_at(0, params)
    found, _ = both.update(grads, both.init(params), params)
    wanted, _ = clip.update(grads["layer"], (), params["layer"])
    assert tree.equal(found, {"layer": wanted, "scale": grads["scale"]})
    remembering = masked(trace(0.9), "layer.weight")
    assert tree.paths(remembering.init(params).sum) == ["['layer']['weight']"]


@settings(max_examples=30, deadline=None)
@given(decay=st.floats(0.0, 0.99), debias=st.booleans(), steps=st.integers(1, 6))
def test_the_average_of_gradients_is_their_weighted_sum(decay, debias, steps):
    params = params_of(torch.float64)
    average = ema_of_gradients(decay, debias=debias)
    state = average.init(params)
    for step in range(steps):
        found, state = average.update(grads_at(step, params), state, params)
    weights = [(1 - decay) * decay ** (steps - 1 - step) for step in range(steps)]
    total = sum(weights) if debias else 1.0
    wanted = tree.map(
        lambda *leaves: sum(w / total * leaf for w, leaf in zip(weights, leaves, strict=True)),
        *[grads_at(step, params) for step in range(steps)],
    )
    assert_close(found, wanted, rtol=1e-9)


def test_a_trace_before_sgd_is_momentum():
    params = params_of()
    for nesterov in (False, True):
        both = chain(trace(0.9, nesterov=nesterov), sgd(0.05, mode="loop"))
        alone = sgd(0.05, momentum=0.9, nesterov=nesterov, mode="loop")
        left, right = (trained(o, params, o.init(params), 0, 5)[0] for o in (both, alone))
        assert_close(left, right)
        assert nesterov or tree.equal(left, right)


def test_half_precisions_are_averaged_in_float32():
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    average = ema_of_gradients(0.999, debias=False)
    state = average.init(params)
    for _ in range(2000):
        _, state = average.update({"w": torch.ones(1, dtype=torch.bfloat16)}, state, params)
    assert state.sum["w"].item() == pytest.approx(1 - 0.999**2000, rel=1e-4)


@pytest.mark.parametrize("draws", ["portable", "native"])
def test_the_noise_is_a_function_of_seed_and_count_with_the_published_variance(draws):
    params = {"w": torch.zeros(200, 100)}
    noise = gradient_noise(0.3, 0.55, seed=5, draws=draws)
    state = noise.init(params)
    for t in range(4):
        found, state = noise.update(params, state, params)
        assert found["w"].var().item() == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.05)
        assert abs(found["w"].mean().item()) < 0.02
        if draws == "portable":
            standard = random.normal(random.fold_in(state.key, t), 20_000).view(200, 100)
            torch.testing.assert_close(found["w"], standard * math.sqrt(0.3 / (1 + t) ** 0.55))
    other = gradient_noise(0.3, 0.55, seed=6, draws=draws)
    assert not torch.equal(other.update(params, other.init(params), params)[0]["w"][0], found["w"][0])


def test_native_noise_is_never_mixed_with_portable_noise():
    params = params_of()
    noise = gradient_noise(0.1, draws="native")
    with pytest.raises(TypeError, match="draws='portable'"):
        torch.func.vmap(lambda grads: noise.update(grads, noise.init(params), params)[0])(lanes([params]))


BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, 7)), value=BROKEN, leaf=st.integers(0, 2), donate=st.booleans())
def test_skipping_is_as_if_the_broken_calls_had_not_been(bad, value, leaf, donate):
    inner = chain(trace(0.9), optim.adamw(RATE))
    optimizer = skip_non_finite(inner)
    params = wanted = params_of()
    state, inner_state = optimizer.init(params), inner.init(params)
    params = copied(params)
    in_a_row = 0
    for step in range(8):
        grads = grads_at(step, params)
        if step in bad:
            leaves, treespec = tree.flatten(grads)
            leaves[leaf] = leaves[leaf].reshape(-1).index_fill(0, torch.tensor(0), value).reshape(leaves[leaf].shape)
            grads = tree.unflatten(treespec, leaves)
        else:
            wanted, inner_state = inner.update(grads, inner_state, wanted)
        params, state = optimizer.update(grads, state, params, donate=donate)
        in_a_row = in_a_row + 1 if step in bad else 0
        assert tree.equal((params, state.inner), (wanted, inner_state))
        assert int(state.in_a_row) == in_a_row
    assert int(state.skipped) == len(bad)
    assert optimizer.count(state) == 8 - len(bad)
    assert optimizer.monitor(state)["skipped_updates"] == len(bad)


def test_large_finite_gradients_are_not_skipped():
    """Their norm overflows, they do not."""
    optimizer = skip_non_finite(sgd(1e-38))
    params = {"w": torch.zeros(4)}
    params, state = optimizer.update({"w": torch.full((4,), 3e38)}, optimizer.init(params), params)
    assert int(state.skipped) == 0
    assert params["w"][0] != 0


def test_a_skipped_update_has_the_derivative_of_the_identity():
    """NaN of the update that is not selected reaches no derivative."""
    optimizer = skip_non_finite(optim.adamw(0.1, mode="loop"))
    state = optimizer.init({"w": torch.ones(2)})

    def loss(w, broken):
        new, _ = optimizer.update({"w": broken * w}, state, {"w": w})
        return new["w"].sum()

    one = torch.func.grad(lambda w: optimizer.update({"w": torch.full((2,), math.nan)}, state, {"w": w})[0]["w"].sum())
    assert torch.equal(one(torch.ones(2)), torch.ones(2))
    two = torch.func.grad(loss, argnums=1)(torch.ones(2), torch.tensor(math.inf))
    assert two == 0


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 4), alpha=st.floats(0.0, 1.0), steps=st.integers(1, 9))
def test_lookahead_is_k_steps_forward_and_one_back(k, alpha, steps):
    inner = sgd(0.1, momentum=0.9)
    optimizer = lookahead(inner, k, alpha)
    params = fast = slow = params_of(torch.float64)
    state, inner_state = optimizer.init(params), inner.init(params)
    for step in range(steps):
        grads = grads_at(step, params)
        params, state = optimizer.update(grads, state, params)
        fast, inner_state = inner.update(grads, inner_state, fast)
        if (step + 1) % k == 0:
            slow = fast = tree.map(lambda s, f: (1 - alpha) * s + alpha * f, slow, fast)
        assert_close((params, state.slow, state.inner), (fast, slow, inner_state), rtol=1e-12)


def test_slow_weights_share_no_memory_with_the_parameters():
    params = params_of()
    optimizer = lookahead(sgd(0.1), 2)
    state = optimizer.init(params)
    for step in range(5):
        places = [leaf.data_ptr() for leaf in tree.leaves((params, state.slow))]
        assert len(set(places)) == len(places)
        params, state = optimizer.update(grads_at(step, params), state, params)


def test_wrappers_hand_the_weight_to_the_accumulation_inside():
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    for wrap in (skip_non_finite, lambda o: lookahead(o, 1, 1.0)):
        optimizer = wrap(every(2, sgd(1.0)))
        state, end = optimizer.init(params), params
        for value, weight in ((1.0, 1), (4.0, 2)):
            end, state = optimizer.update({"w": torch.tensor([value], dtype=torch.float64)}, state, end, weight=weight)
        assert end["w"].item() == -3.0


def test_clipping_far_below_the_bound_returns_the_gradients_themselves():
    clip, params = clip_by_global_norm(1e3), params_of()
    grads = grads_at(0, params)
    assert clip.update(grads, (), params)[0] is grads


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    ratio=st.floats(0.9, 1.1) | st.floats(0.01, 100.0),
    seed=st.integers(0, 99),
)
def test_clipping_has_the_bits_of_torch_on_both_sides_of_the_bound(dtype, ratio, seed):
    grads = grads_at(seed, params_of(dtype))
    leaves = [torch.nn.Parameter(leaf) for leaf in tree.leaves(grads)]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
    max_norm = ratio * math.hypot(*(leaf.detach().double().norm().item() for leaf in leaves))
    torch.nn.utils.clip_grad_norm_(leaves, max_norm, foreach=True)
    clip = clip_by_global_norm(max_norm)
    found, _ = clip.update(grads, clip.init(grads), grads)
    assert tree.equal(tree.leaves(found), [leaf.grad for leaf in leaves])


def test_a_tree_without_leaves_passes():
    for name in TRANSFORMS:
        if "mask" not in name:
            transform = TRANSFORMS[name]()
            assert transform.update({}, transform.init({}), {})[0] == {}
    for make in (skip_non_finite, lookahead):
        optimizer = make(sgd(0.1))
        params, state = trained(optimizer, {}, optimizer.init({}), 0, 6)
        assert (params, optimizer.count(state)) == ({}, 6)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: adaptive_clip(0.0), ValueError, "clipping must be above 0"),
        (lambda: adaptive_clip(eps=-1.0), ValueError, "eps must be above 0"),
        (lambda: add_decayed_weights(-0.1), ValueError, "weight_decay"),
        (lambda: add_decayed_weights(0.1, mask=3), TypeError, r"mask must be a pattern such as '\*\.bias'"),
        (lambda: add_decayed_weights(0.1, mask=[]), ValueError, "mask is empty"),
        (lambda: masked(sgd(), "*"), TypeError, "chain transforms before an optimiser"),
        (lambda: masked(clip_by_value, "*"), TypeError, r"call it, as in clip_by_value\(\.\.\.\)"),
        (
            lambda: masked(trace(0.9), "*.wieght").init(params_of()),
            ValueError,
            r"'\*\.wieght' matches no parameter; their names are layer.bias, layer.weight, scale",
        ),
        (lambda: ema_of_gradients(1.0), ValueError, "decay must be at least 0 and less than 1"),
        (lambda: trace(0.9, nesterov=1), TypeError, "nesterov must be True or False"),
        (lambda: gradient_noise(-1.0), ValueError, "eta"),
        (lambda: gradient_noise(1.0, draws="fast"), ValueError, "draws must be one of 'portable', 'native'"),
        (lambda: gradient_noise(1.0).init({"z": torch.ones(1) * 1j}), TypeError, r"params\['z'\] is complex64\[1\]"),
        (lambda: skip_non_finite(clip_by_value(1.0)), TypeError, "chain it with an optimiser"),
        (lambda: skip_non_finite(torch.optim.SGD([torch.ones(1)])), TypeError, r"write from_torch\("),
        (lambda: lookahead(sgd(), 0), ValueError, "k must be at least 1"),
        (lambda: lookahead(sgd(), alpha=1.5), ValueError, r"alpha must be in \[0, 1\]"),
        (lambda: lookahead(3), TypeError, r"lookahead\(\) wraps an Optimizer, got 3"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_schedule_that_branches_is_refused_where_it_is_mapped():
    optimizer = lookahead(sgd(lambda count: 0.1 if count < 5 else 0.01, mode="loop"))
    params = params_of()
    with pytest.raises(NotTraceable, match=r"torch\.where\(count < n, first, second\)"):
        torch.func.vmap(optimizer.update)(*lanes([(params, optimizer.init(params), params)]))
