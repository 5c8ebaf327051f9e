"""Every optimiser against the same laws: torch's bits, purity, fixed structure, exact replay."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import pytest
import torch

from helios_fn import optim, tree
from helios_fn.optim import schedules

DTYPES = {
    "float32": [torch.float32] * 3,
    "float64": [torch.float64] * 3,
    "bfloat16": [torch.bfloat16] * 3,
    "mixed": [torch.float32, torch.bfloat16, torch.float64],
}
FACTOR = schedules.warmup_cosine(1.0, 7, 40, 0.1)


class Subject(NamedTuple):
    """An optimiser beside torch's own: ``build(lr)`` and ``cls(params, lr=lr, **hyper)``."""

    build: Any
    cls: Any
    hyper: dict[str, Any]
    lr: float = 0.01
    matrices: bool = False


def native_subjects() -> dict[str, Subject]:
    variants = {
        "adamw": (optim.adamw, torch.optim.AdamW, {}),
        "adamw amsgrad maximize": (optim.adamw, torch.optim.AdamW, {"amsgrad": True, "maximize": True, "eps": 1e-6}),
        "adam": (optim.adam, torch.optim.Adam, {"betas": (0.8, 0.95)}),
        "adam decay": (optim.adam, torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
        "sgd": (optim.sgd, torch.optim.SGD, {}),
        "sgd momentum": (optim.sgd, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
        "sgd nesterov": (optim.sgd, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        "sgd maximize": (optim.sgd, torch.optim.SGD, {"momentum": 0.8, "maximize": True, "weight_decay": 0.01}),
    }
    flags = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    return {
        f"{name} {mode}": Subject(
            functools.partial(factory, mode=mode, **hyper), cls, {**hyper, **flags[mode]}, lr=0.05
        )
        for name, (factory, cls, hyper) in variants.items()
        for mode in flags
    }


def adapted_subjects() -> dict[str, Subject]:
    o = torch.optim
    variants = {
        "Adagrad": (o.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
        "RMSprop": (o.RMSprop, {"momentum": 0.9, "centered": True}),
        "NAdam": (o.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.01}),
        "RAdam": (o.RAdam, {"weight_decay": 0.01}),
        "Adadelta": (o.Adadelta, {}),
        "Adamax": (o.Adamax, {}),
        "ASGD": (o.ASGD, {"t0": 5, "lambd": 0.01}),
        "Rprop": (o.Rprop, {}),
        "Adafactor": (getattr(o, "Adafactor", None), {}),
        "Muon": (getattr(o, "Muon", None), {}),
        "SGD": (o.SGD, {"momentum": 0.9, "dampening": 0.5}),
        "AdamW": (o.AdamW, {"amsgrad": True}),
    }
    table = {}
    for name, (cls, hyper) in variants.items():
        if cls is None:
            continue  # younger than the oldest torch that is supported
        has_foreach = "foreach" in inspect.signature(cls).parameters
        for foreach in (False, True) if has_foreach else (None,):
            given = {**hyper, "foreach": foreach} if has_foreach else hyper
            build = functools.partial(lambda cls, given, lr: optim.from_torch(cls, lr=lr, **given), cls, given)
            table[f"from_torch {name} foreach={foreach}"] = Subject(build, cls, given, matrices=name == "Muon")
    return table


NATIVE, ADAPTED = native_subjects(), adapted_subjects()
TORCH = {**NATIVE, **ADAPTED}
COMPOSED = {
    "chain": lambda lr: optim.chain(optim.clip_by_global_norm(0.5), optim.clip_by_value(0.1), optim.adamw(lr)),
    "every": lambda lr: optim.every(3, optim.adamw(lr)),
    "every 1": lambda lr: optim.every(1, optim.sgd(lr, momentum=0.9)),
    "every chain": lambda lr: optim.every(2, optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(lr, momentum=0.9))),
    "chain every": lambda lr: optim.chain(optim.clip_by_value(0.1), optim.every(2, optim.adam(lr))),
    "every adapted": lambda lr: optim.every(2, optim.from_torch(torch.optim.NAdam, lr=lr)),
}
ALL = {**{name: subject.build for name, subject in TORCH.items()}, **COMPOSED}


def params_of(dtypes=DTYPES["float32"], *, matrices: bool = False, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5, 5), (3, 4)] if matrices else [(4, 3), (5,), ()]
    leaves = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return {"layer": {"weight": leaves[0], "bias": leaves[1]}, "scale": leaves[2]}


def grads_at(step: int, params):
    generator = torch.Generator().manual_seed(1000 + step)
    return tree.map(lambda leaf: torch.randn(leaf.shape, generator=generator).to(leaf.dtype), params)


def transposed(leaf):
    """The same values, laid out in memory the other way round, as gradients of ``x @ w.T`` are."""
    return leaf.t().contiguous().t() if leaf.dim() == 2 else leaf


def matrices(name: str) -> bool:
    return name in TORCH and TORCH[name].matrices


def kinds(state):
    return [
        (path, leaf.dtype, leaf.shape) if isinstance(leaf, torch.Tensor) else (path, type(leaf))
        for path, leaf in tree.items(state)
    ]


def trained(optimizer, params, state, start: int, stop: int):
    for step in range(start, stop):
        params, state = optimizer.update(grads_at(step, params), state, params, weight=step % 3 + 1)
    return params, state


@pytest.mark.parametrize("dtypes", ["float32", "mixed"])
@pytest.mark.parametrize("name", TORCH)
def test_fifty_updates_under_a_schedule_have_the_bits_of_torch_with_lambda_lr(name, dtypes):
    subject = TORCH[name]
    params = params_of(DTYPES[dtypes], matrices=subject.matrices)
    imperative = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    reference = subject.cls(imperative, lr=subject.lr, **subject.hyper)
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, FACTOR)
    optimizer = subject.build(lr=lambda count: subject.lr * FACTOR(count))
    state = optimizer.init(params)
    for step in range(50):
        grads = grads_at(step, params)
        for leaf, grad in zip(imperative, tree.leaves(grads), strict=True):
            leaf.grad = grad.clone()
        reference.step()
        scheduler.step()
        params, state = optimizer.update(tree.map(transposed, grads), state, params)
        if step in (0, 1, 2, 49):
            assert tree.equal(tree.leaves(params), [leaf.detach() for leaf in imperative]), f"update {step}"
    assert optimizer.count(state) == 50


@pytest.mark.parametrize("name", ["adamw fused", "sgd momentum fused", "from_torch ASGD foreach=False"])
def test_a_constant_rate_has_the_bits_of_torch(name):
    subject = TORCH[name]
    params = params_of()
    imperative = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    reference = subject.cls(imperative, lr=subject.lr, **subject.hyper)
    optimizer = subject.build(lr=subject.lr)
    state = optimizer.init(params)
    for step in range(20):
        for leaf, grad in zip(imperative, tree.leaves(grads_at(step, params)), strict=True):
            leaf.grad = grad
        reference.step()
    params, state = trained(optimizer, params, state, 0, 20)
    assert tree.equal(tree.leaves(params), [leaf.detach() for leaf in imperative])
    assert optimizer.monitor(state) == {"learning_rate": subject.lr}


@pytest.mark.parametrize("name", ALL)
def test_an_update_is_pure(name):
    """Inputs keep their bits and versions, equal inputs give equal bits, no generator is drawn from."""
    optimizer = ALL[name](lr=0.01)
    params = params_of(matrices=matrices(name))
    state = optimizer.init(params)
    params, state = trained(optimizer, params, state, 0, 1)
    for step in range(1, 4):
        inputs = (grads_at(step, params), state, params)
        before, versions = tree.digest(inputs), [leaf._version for leaf in tree.leaves(inputs)]
        generator = torch.get_rng_state()
        once = optimizer.update(*inputs)
        again = optimizer.update(*inputs)
        assert torch.equal(torch.get_rng_state(), generator)
        assert tree.digest(inputs) == before
        assert [leaf._version for leaf in tree.leaves(inputs)] == versions
        assert tree.equal(once, again)
        params, state = once


@pytest.mark.parametrize("name", ALL)
def test_the_structure_of_the_state_is_fixed_from_init_on_and_can_be_saved(name):
    optimizer = ALL[name](lr=0.01)
    params = params_of(matrices=matrices(name))
    state = optimizer.init(params)
    shape, treespec = kinds(state), tree.structure(state)
    assert all(isinstance(leaf, torch.Tensor | bool | int | float) for leaf in tree.leaves(state))
    for step in range(4):
        params, state = trained(optimizer, params, state, step, step + 1)
        assert kinds(state) == shape
        assert tree.structure(state) == treespec
    assert not any(leaf.requires_grad for leaf in tree.leaves(params))


@pytest.mark.parametrize("name", ALL)
def test_a_copy_of_the_state_goes_on_with_the_same_bits_in_a_new_optimiser(name):
    params = params_of(matrices=matrices(name))
    first = ALL[name](lr=0.01)
    states = [(params, first.init(params))]
    for step in range(5):
        states.append(trained(first, *states[-1], step, step + 1))
    for step, saved in enumerate(states):
        loaded = tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, saved)
        assert tree.equal(trained(ALL[name](lr=0.01), *loaded, step, 5), states[-1])


@pytest.mark.parametrize("name", ALL)
def test_outputs_share_no_memory_with_inputs(name):
    optimizer = ALL[name](lr=0.01)
    params = params_of(matrices=matrices(name))
    state = optimizer.init(params)
    for step in range(3):
        grads = grads_at(step, params)
        new = optimizer.update(grads, state, params)
        taken = {leaf.data_ptr() for leaf in tree.leaves((grads, state)) if isinstance(leaf, torch.Tensor)}
        written = [leaf.data_ptr() for leaf in tree.leaves(new) if isinstance(leaf, torch.Tensor)]
        untouched = {leaf.data_ptr() for leaf in tree.leaves(optimizer_memory_kept(state, new[1]))}
        assert not (set(written) - untouched) & taken
        assert len(set(written)) == len(written)
        params, state = new


def optimizer_memory_kept(before, after):
    """Leaves that a call of ``every`` passes on as they are."""
    kept = {id(leaf) for leaf in tree.leaves(before)}
    return [leaf for leaf in tree.leaves(after) if id(leaf) in kept and isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ALL)
def test_the_description_is_the_same_for_equal_optimisers_and_holds_no_address(name):
    lr = schedules.cosine(0.1, 10)
    assert repr(ALL[name](lr=lr)) == repr(ALL[name](lr=lr))
    assert "0x" not in repr(ALL[name](lr=lambda count: 0.1))
    assert "cosine(start=0.1, steps=10, end=0.0)" in repr(ALL[name](lr=lr))


@pytest.mark.parametrize("name", ALL)
def test_monitor_tells_the_rate_of_the_last_update_or_of_the_first_to_come(name):
    optimizer = ALL[name](lr=lambda count: 0.1 * (count + 1))
    params = params_of(matrices=matrices(name))
    state = optimizer.init(params)
    assert optimizer.monitor(state) == {"learning_rate": 0.1}
    for step in range(6):
        params, state = trained(optimizer, params, state, step, step + 1)
        last = max(optimizer.count(state) - 1, 0)
        assert optimizer.monitor(state) == {"learning_rate": 0.1 * (last + 1)}
    assert optimizer.count(state) >= 2


@pytest.mark.parametrize("name", ["adamw fused", "sgd fused", "from_torch NAdam foreach=False", "every", "chain"])
def test_a_tree_without_leaves_is_updated_to_itself(name):
    optimizer = ALL[name](lr=0.01)
    params, state = trained(optimizer, {}, optimizer.init({}), 0, 6)
    assert params == {}
    assert optimizer.count(state) >= 2


def test_the_count_is_an_integer_beyond_the_reach_of_float32():
    optimizer = optim.adamw(lambda count: 1.0 if count == 2**24 + 1 else 0.0, weight_decay=0.0)
    params = {"w": torch.ones(2)}
    state = optimizer.init(params)._replace(count=torch.tensor(2**24))
    rates = []
    for _ in range(3):
        params, state = optimizer.update({"w": torch.ones(2)}, state, params)
        rates.append(optimizer.monitor(state)["learning_rate"])
    assert state.count.dtype == torch.int64
    assert optimizer.count(state) == 2**24 + 3
    assert rates == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("mode", ["fused", "foreach", "loop"])
@pytest.mark.parametrize("factory", [optim.adamw, functools.partial(optim.sgd, momentum=0.9)])
def test_bits_do_not_depend_on_how_tensors_lie_in_memory(factory, mode):
    """Transposed, expanded and sliced gradients, and slots in another layout than their parameter."""
    optimizer = factory(0.1, mode=mode)
    params = {"a": torch.randn(4, 3), "b": torch.randn(6)}
    plain = {"a": torch.full((4, 3), 0.5), "b": torch.randn(12)[::2].contiguous()}
    laid = {"a": torch.tensor(0.5).expand(4, 3), "b": plain["b"].repeat_interleave(2)[::2]}
    once = optimizer.update(plain, optimizer.init(params), params)
    assert tree.equal(optimizer.update(laid, optimizer.init(params), params), once)
    moved = tree.map(transposed, once[1])
    assert tree.equal(optimizer.update(laid, moved, once[0]), optimizer.update(plain, once[1], once[0]))


@pytest.mark.parametrize("mode", ["foreach", "loop"])
def test_complex_parameters_are_updated_outside_the_fused_kernels(mode):
    optimizer = optim.adamw(0.1, mode=mode)
    params = {"z": torch.randn(3, dtype=torch.complex64)}
    leaf = params["z"].clone().requires_grad_()
    reference = torch.optim.AdamW([leaf], lr=0.1, foreach=mode == "foreach")
    leaf.grad = torch.ones(3, dtype=torch.complex64)
    reference.step()
    params, _ = optimizer.update({"z": leaf.grad}, optimizer.init(params), params)
    assert tree.equal(params["z"], leaf.detach())


def test_parameters_that_require_gradients_are_updated_to_plain_tensors():
    params = {"w": torch.nn.Parameter(torch.ones(3))}
    for name in ("adamw fused", "from_torch RAdam foreach=False", "every 1", "chain"):
        optimizer = ALL[name](lr=0.1)
        new, _ = optimizer.update({"w": torch.ones(3)}, optimizer.init(params), params)
        assert type(new["w"]) is torch.Tensor
        assert not new["w"].requires_grad
        assert params["w"].grad is None


@pytest.mark.parametrize("name", ["adamw fused", "sgd loop", "from_torch NAdam foreach=False", "every"])
@pytest.mark.parametrize(
    ("grads", "words"),
    [
        ({"a": torch.ones(2), "b": None}, r"grads\['b'\] is None \(.*needs zeros"),
        ({"a": torch.ones(2)}, r"no leaf .*b"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, r"has a leaf .*c.* more"),
        ({"a": torch.ones(2), "b": torch.ones(4)}, r"grads\['b'\] is float32\[4\].*parameter is float32\[3\]"),
        ({"a": torch.ones(2).double(), "b": torch.ones(3)}, r"grads\['a'\] is float64"),
        ({"a": torch.ones(2), "b": torch.ones(3).to_sparse()}, r"grads\['b'\] is sparse float32"),
        ({"a": 1.0, "b": torch.ones(3)}, r"grads\['a'\] is float 1.0"),
        ({"a": torch.ones(2, device="meta"), "b": torch.ones(3)}, r"grads\['a'\] is float32\[2\] on meta"),
    ],
)
def test_gradients_that_do_not_fit_are_refused_by_path(name, grads, words):
    optimizer = ALL[name](lr=0.1)
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(ValueError, match=words):
        optimizer.update(grads, optimizer.init(params), params)


def test_the_state_of_another_optimiser_is_refused():
    params = params_of()
    with pytest.raises(ValueError, match=r"not made by adamw\(.*other slots"):
        optim.adamw(0.1).update(params, optim.sgd(0.1).init(params), params)
    wrong = optim.adamw(0.1).init({**params, "scale": torch.ones(7)})
    with pytest.raises(ValueError, match=r"slot 'exp_avg' of parameter 2 is float32\[7\]"):
        optim.adamw(0.1).update(params, wrong, params)


@pytest.mark.parametrize("name", ["adamw fused", "from_torch NAdam foreach=False", "every"])
@pytest.mark.parametrize("leaf", [3, torch.ones(2, dtype=torch.int64), torch.ones(2).to_sparse()])
def test_leaves_that_cannot_be_optimised_are_refused_by_path(name, leaf):
    with pytest.raises(TypeError, match=r"params\['b'\]\['c'\]"):
        ALL[name](lr=0.1).init({"a": torch.ones(2), "b": {"c": leaf}})


def test_the_fused_mode_refuses_what_it_has_no_kernel_for():
    with pytest.raises(ValueError, match=r"params\['z'\], complex64\[2\] on cpu: choose mode='foreach'"):
        optim.adamw(0.1).init({"a": torch.ones(2), "z": torch.ones(2, dtype=torch.complex64)})


SCHEDULER = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.adamw("fast"), TypeError, "lr must be a number or a schedule"),
        (lambda: optim.sgd(SCHEDULER), TypeError, r"write hf.schedules.from_torch\(StepLR, \.\.\."),
        (lambda: optim.sgd(type(SCHEDULER)), TypeError, r"write hf.schedules.from_torch\(StepLR, \.\.\."),
        (lambda: optim.schedules.from_torch(SCHEDULER, base_lr=1.0, steps=2), TypeError, "needs a scheduler class"),
        (lambda: optim.adamw(-1.0), ValueError, "lr must be finite and at least 0, got -1.0"),
        (lambda: optim.adamw(float("nan")), ValueError, "lr must be finite"),
        (lambda: optim.adamw(betas=0.9), TypeError, "betas must be two numbers"),
        (lambda: optim.adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be at least 0 and less than 1"),
        (lambda: optim.adam(eps=-1e-8), ValueError, "eps must be"),
        (lambda: optim.adamw(weight_decay=-0.1), ValueError, "weight_decay"),
        (lambda: optim.adamw(amsgrad=1), TypeError, "amsgrad must be True or False"),
        (lambda: optim.adamw(mode="quick"), ValueError, "mode must be one of 'fused', 'foreach', 'loop'"),
        (lambda: optim.sgd(momentum=-0.1), ValueError, "momentum"),
        (lambda: optim.sgd(nesterov=True), ValueError, "nesterov needs momentum"),
        (lambda: optim.sgd(momentum=0.9, dampening=0.1, nesterov=True), ValueError, "dampening=0.1"),
        (lambda: optim.clip_by_global_norm(0), ValueError, "max_norm must be above 0"),
        (lambda: optim.clip_by_value(-1.0), ValueError, "limit must be above 0"),
        (lambda: optim.chain(), ValueError, "at least one"),
        (lambda: optim.chain(optim.adamw(), optim.sgd()), ValueError, "it stands last"),
        (lambda: optim.chain(optim.adamw(), optim.clip_by_value(1.0)), ValueError, "part 0 of chain"),
        (lambda: optim.chain(optim.adamw), TypeError, r"call it, as in adamw\(\.\.\.\)"),
        (lambda: optim.chain(torch.optim.SGD([torch.ones(1)])), TypeError, r"from_torch\(torch.optim.SGD, \.\.\.\)"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_schedule_that_is_not_finite_stops_the_update():
    optimizer = optim.adamw(lambda count: float("inf") if count else 0.1)
    params, state = trained(optimizer, params_of(), optimizer.init(params_of()), 0, 1)
    with pytest.raises(ValueError, match="returned inf at count 1"):
        trained(optimizer, params, state, 1, 2)


def test_chains_of_transforms_are_transforms_and_nest():
    clip, clamp = optim.clip_by_global_norm(0.3), optim.clip_by_value(0.1)
    both = optim.chain(clip, clamp)
    assert isinstance(both, optim.Transform)
    params = params_of()
    nested, flat = optim.chain(both, optim.adamw(0.1)), optim.chain(clip, clamp, optim.adamw(0.1))
    (left, _), (right, _) = (trained(o, params, o.init(params), 0, 3) for o in (nested, flat))
    assert tree.equal(left, right)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_clipping_by_norm_has_the_bits_of_torch(dtypes, max_norm):
    params = params_of(DTYPES[dtypes])
    grads = grads_at(0, params)
    leaves = [torch.nn.Parameter(leaf) for leaf in tree.leaves(params)]
    for leaf, grad in zip(leaves, tree.leaves(grads), strict=True):
        leaf.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(leaves, max_norm, foreach=True)
    clip = optim.clip_by_global_norm(max_norm)
    clipped, _ = clip.update(grads, clip.init(params), params)
    assert tree.equal(tree.leaves(clipped), [leaf.grad for leaf in leaves])


def test_clipping_by_value_has_the_bits_of_torch_and_keeps_nan():
    grads = {"a": torch.tensor([-3.0, 0.1, float("nan"), float("inf"), -0.0]), "b": torch.ones(2).bfloat16()}
    leaves = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in tree.leaves(grads)]
    for leaf, grad in zip(leaves, tree.leaves(grads), strict=True):
        leaf.grad = grad.clone()
    torch.nn.utils.clip_grad_value_(leaves, 0.5)
    clip = optim.clip_by_value(0.5)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert tree.equal(tree.leaves(clipped), [leaf.grad for leaf in leaves])
