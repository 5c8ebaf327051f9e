"""What native optimisers, chains and clipping promise beyond the laws of `test_optim_laws`."""

from __future__ import annotations

import functools

import pytest
import torch

from helios_fn import optim, tree

from .optimisers import ALL, DTYPES, TORCH, grads_at, params_of, trained, transposed


@pytest.mark.parametrize("name", ["adamw fused", "sgd momentum fused", "from_torch ASGD foreach=False"])
def test_a_constant_rate_has_the_bits_of_torch(name):
    row = TORCH[name]
    params = params_of()
    imperative = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    reference = row.cls(imperative, lr=row.lr, **row.hyper)
    optimizer = row.build(lr=row.lr)
    state = optimizer.init(params)
    for step in range(20):
        for leaf, grad in zip(imperative, tree.leaves(grads_at(step, params)), strict=True):
            leaf.grad = grad
        reference.step()
    params, state = trained(optimizer, params, state, 0, 20)
    assert tree.equal(tree.leaves(params), [leaf.detach() for leaf in imperative])
    assert optimizer.monitor(state) == {"learning_rate": row.lr}


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


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("name", ["adamw fused", "from_torch RAdam foreach=False", "every 1", "chain"])
def test_parameters_that_require_gradients_are_updated_to_plain_tensors_where_autograd_rests(name, donate):
    params = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = ALL[name].build(lr=0.1)
    state = optimizer.init(params)
    with torch.no_grad():
        new, state = optimizer.update({"w": torch.ones(3)}, state, params, donate=donate)
    assert type(new["w"]) is torch.Tensor
    assert not any(leaf.requires_grad for leaf in tree.leaves((new, state)))
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
    optimizer = ALL[name].build(lr=0.1)
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(ValueError, match=words):
        optimizer.update(grads, optimizer.init(params), params)


def test_the_state_of_another_optimiser_is_refused():
    params = params_of()
    with pytest.raises(ValueError, match=r"not made by adamw\(.*other slots"):
        optim.adamw(0.1).update(params, optim.sgd(0.1).init(params), params)
    wrong = optim.adamw(0.1).init({**params, "scale": torch.ones(7)})
    with pytest.raises(
        ValueError, match=r"slot 'exp_avg' of params\['scale'\] is float32\[7\] on cpu, not float32\[\]"
    ):
        optim.adamw(0.1).update(params, wrong, params)


@pytest.mark.parametrize("name", ["adamw fused", "from_torch NAdam foreach=False", "every"])
@pytest.mark.parametrize("leaf", [3, torch.ones(2, dtype=torch.int64), torch.ones(2).to_sparse()])
def test_leaves_that_cannot_be_optimised_are_refused_by_path(name, leaf):
    with pytest.raises(TypeError, match=r"params\['b'\]\['c'\]"):
        ALL[name].build(lr=0.1).init({"a": torch.ones(2), "b": {"c": leaf}})


def test_the_fused_mode_refuses_what_it_has_no_kernel_for():
    with pytest.raises(ValueError, match=r"params\['z'\] is complex64\[2\] on cpu.*choose mode='foreach'"):
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
        (lambda: optim.rmsprop(alpha=-0.1), ValueError, "alpha must be"),
        (lambda: optim.rmsprop(mode="fused"), ValueError, "mode must be one of 'foreach', 'loop'"),
        (lambda: optim.lion(betas=(0.9,)), TypeError, "betas must be two numbers"),
        (lambda: optim.adafactor(eps=1e-3), TypeError, "eps must be two numbers"),
        (lambda: optim.adafactor(d=0.5), ValueError, "d must be finite and at least 1"),
        (lambda: optim.adafactor(beta2_decay=0.8), ValueError, "beta2_decay must be finite and at most 0"),
        (lambda: optim.muon(adjust_lr_fn="none"), ValueError, "adjust_lr_fn must be one of 'original'"),
        (lambda: optim.muon(ns_coefficients=(1, 2)), TypeError, "ns_coefficients must be three numbers"),
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


@pytest.mark.parametrize("factory", [optim.lion, optim.adafactor, optim.muon])
def test_algorithms_without_a_form_for_complex_numbers_say_so(factory):
    with pytest.raises(ValueError, match=r"params\['z'\] is complex64\[2, 2\] on cpu: "):
        factory(0.1).init({"z": torch.ones(2, 2, dtype=torch.complex64)})


def test_lion_moves_by_the_sign_of_the_interpolated_momentum():
    optimizer = optim.lion(0.5, betas=(0.5, 0.75), weight_decay=0.5)
    params = {"w": torch.tensor([1.0, 2.0, 4.0])}
    grads = [{"w": torch.tensor([4.0, -4.0, 0.0])}, {"w": torch.tensor([-0.5, -4.0, 0.0])}]
    state = optimizer.init(params)
    params, state = optimizer.update(grads[0], state, params)
    assert params["w"].tolist() == [0.75 - 0.5, 1.5 + 0.5, 3.0]
    assert state.slots["w"]["exp_avg"].tolist() == [1.0, -1.0, 0.0]
    params, state = optimizer.update(grads[1], state, params)
    assert params["w"].tolist() == [0.75 * 0.25 - 0.5, 1.5 + 0.5, 2.25]


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    slots = optim.adafactor().init({"m": torch.ones(2, 4, 3), "v": torch.ones(3)}).slots
    assert {name: tuple(slot.shape) for name, slot in slots["m"].items()} == {
        "col_var": (2, 1, 3),
        "row_var": (2, 4, 1),
    }
    assert {name: tuple(slot.shape) for name, slot in slots["v"].items()} == {"variance": (3,)}


@pytest.mark.parametrize("mode", ["foreach", "loop"])
def test_the_formula_for_complex_parameters_agrees_with_the_kernels(mode):
    for factory in (optim.adamw, optim.rmsprop, functools.partial(optim.sgd, momentum=0.9)):
        optimizer, params = factory(0.1, mode=mode), {"z": torch.randn(3, dtype=torch.complex64)}
        state, grads = optimizer.init(params), {"z": torch.randn(3, dtype=torch.complex64)}
        recorded = {"z": grads["z"].clone().requires_grad_()}
        found, wanted = (optimizer.update(g, state, params) for g in (recorded, grads))
        for left, right in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
            torch.testing.assert_close(left, right)


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
    before = tree.digest(grads)
    by_hand, norm = optim.clip_gradients(grads, max_norm)
    assert tree.equal(by_hand, clipped)
    assert torch.equal(norm, torch.nn.utils.get_total_norm(tree.leaves(grads)))
    assert torch.equal(norm, optim.global_norm(grads))
    assert tree.digest(grads) == before


def test_a_norm_is_mapped_and_differentiated_and_that_of_nothing_is_zero():
    grads = grads_at(0, params_of())
    many = torch.vmap(optim.global_norm)(tree.map(lambda leaf: torch.stack([leaf, 2 * leaf]), grads))
    torch.testing.assert_close(many, optim.global_norm(grads) * torch.tensor([1.0, 2.0]))
    found = torch.func.grad(lambda leaf: optim.clip_gradients({"a": leaf}, 1.0)[0]["a"].sum())(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([16 / 25, 9 / 25]) / 5 - 12 / 125)
    assert optim.global_norm({}) == 0
    assert optim.clip_gradients({}, 1.0) == ({}, 0)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        optim.clip_gradients(grads, 0)


def test_decay_without_biases_and_norms_and_rates_by_layer_are_one_line_each():
    """With the bits of torch's parameter groups."""
    names = ("layers.0.bias", "layers.0.weight", "layers.1.bias", "layers.1.weight")
    params = {name: torch.randn(3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)}
    rates = {name: 0.1 * 0.5 ** (1 - int(name[7])) for name in names}
    cases = {
        "decay": (
            optim.groups({"*.bias": optim.adamw(0.1, weight_decay=0.0)}, default=optim.adamw(0.1, weight_decay=0.2)),
            lambda name: {"lr": 0.1, "weight_decay": 0.0 if name.endswith("bias") else 0.2},
        ),
        "rates": (
            optim.groups({f"layers.{i}.*": optim.adamw(0.1 * 0.5 ** (1 - i)) for i in range(2)}, default=None),
            lambda name: {"lr": rates[name]},
        ),
    }
    for optimizer, hyper in cases.values():
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        reference = torch.optim.AdamW([{"params": [leaf], **hyper(name)} for name, leaf in leaves.items()], fused=True)
        new, state = params, optimizer.init(params)
        for step in range(3):
            grads = grads_at(step, params)
            for name, leaf in leaves.items():
                leaf.grad = grads[name].clone()
            reference.step()
            new, state = optimizer.update(grads, state, new)
        assert tree.equal(new, {name: leaf.detach() for name, leaf in leaves.items()})


def test_clipping_by_value_has_the_bits_of_torch_and_keeps_nan():
    grads = {"a": torch.tensor([-3.0, 0.1, float("nan"), float("inf"), -0.0]), "b": torch.ones(2).bfloat16()}
    leaves = [torch.nn.Parameter(torch.zeros_like(leaf)) for leaf in tree.leaves(grads)]
    for leaf, grad in zip(leaves, tree.leaves(grads), strict=True):
        leaf.grad = grad.clone()
    torch.nn.utils.clip_grad_value_(leaves, 0.5)
    clip = optim.clip_by_value(0.5)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert tree.equal(tree.leaves(clipped), [leaf.grad for leaf in leaves])
