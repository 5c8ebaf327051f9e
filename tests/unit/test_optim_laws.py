"""Every optimiser against the same laws: torch's bits, purity, fixed structure, exact replay, donation, tracing."""

from __future__ import annotations

import warnings

import pytest
import torch

from helios_fn import optim, tree
from helios_fn.errors import NotTraceable
from helios_fn.optim import schedules

from .optimisers import (
    ALL,
    DTYPES,
    FACTOR,
    FORMULAS,
    NATIVE,
    TORCH,
    TRACED,
    copied,
    grads_at,
    kinds,
    params_of,
    started,
    trained,
    transposed,
)


def tensors(state):
    return [leaf for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)]


def assert_close(found, wanted, name: str, tolerance: float = 1e-6):
    tolerance *= ALL[name].slack
    for (path, left), right in zip(tree.items(found), tree.leaves(wanted), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda text, path=path: path + text)


@pytest.mark.parametrize("dtypes", ["float32", "mixed"])
@pytest.mark.parametrize("name", TORCH)
def test_fifty_updates_under_a_schedule_have_the_bits_of_torch_with_lambda_lr(name, dtypes):
    row = TORCH[name]
    params = params_of(DTYPES[dtypes if row.mixed else "float64"], matrices=row.matrices)
    imperative = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    reference = row.cls(imperative, lr=row.lr, **row.hyper)
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, FACTOR)
    optimizer = row.build(lr=lambda count: row.lr * FACTOR(count))
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


@pytest.mark.parametrize("name", ALL)
def test_an_update_is_pure(name):
    """Inputs keep their bits and versions, equal inputs give equal bits, no generator is drawn from."""
    optimizer, params, state = started(name)
    params, state = trained(optimizer, params, state, 0, 1)
    for step in range(1, 4):
        inputs = (grads_at(step, params), state, params)
        before, versions = tree.digest(inputs), [leaf._version for leaf in tensors(inputs)]
        generator = torch.get_rng_state()
        once = optimizer.update(*inputs)
        again = optimizer.update(*inputs)
        assert torch.equal(torch.get_rng_state(), generator)
        assert tree.digest(inputs) == before
        assert [leaf._version for leaf in tensors(inputs)] == versions
        assert tree.equal(once, again)
        params, state = once


@pytest.mark.parametrize("name", ALL)
def test_the_structure_of_the_state_is_fixed_from_init_on_and_can_be_saved(name):
    optimizer, params, state = started(name)
    shape, treespec = kinds(state), tree.structure(state)
    assert all(isinstance(leaf, torch.Tensor | bool | int | float) for leaf in tree.leaves(state))
    for step in range(4):
        params, state = trained(optimizer, params, state, step, step + 1)
        assert kinds(state) == shape
        assert tree.structure(state) == treespec
    assert not any(leaf.requires_grad for leaf in tree.leaves(params))


@pytest.mark.parametrize("name", ALL)
def test_a_copy_of_the_state_goes_on_with_the_same_bits_in_a_new_optimiser(name):
    first, *start = started(name)
    states = [tuple(start)]
    for step in range(5):
        states.append(trained(first, *states[-1], step, step + 1))
    for step, saved in enumerate(states):
        assert tree.equal(trained(ALL[name].build(lr=0.01), *copied(saved), step, 5), states[-1])


@pytest.mark.parametrize("name", ALL)
def test_outputs_share_no_memory_with_inputs_but_leaves_that_are_passed_on(name):
    """A call of ``every`` between updates passes parameters on, frozen groups always, `tunable` its hyperparameters."""
    optimizer, params, state = started(name)
    for step in range(3):
        grads = grads_at(step, params)
        new = optimizer.update(grads, state, params)
        kept = {id(leaf) for leaf in tensors((state, params))}
        taken = {leaf.data_ptr() for leaf in tensors((grads, state, params))}
        written = [leaf.data_ptr() for leaf in tensors(new) if id(leaf) not in kept]
        assert not set(written) & taken
        assert len(set(written)) == len(written)
        params, state = new


@pytest.mark.parametrize("name", ALL)
def test_donation_changes_no_bit_and_never_writes_to_the_gradients(name):
    optimizer, params, state = started(name)
    given = copied((params, state))
    for step in range(7):
        grads = grads_at(step, params)
        before = tree.digest(grads)
        params, state = optimizer.update(grads, state, params, weight=step % 3 + 1)
        given = optimizer.update(grads, given[1], given[0], weight=step % 3 + 1, donate=True)
        assert tree.equal((params, state), given)
        assert kinds((params, state)) == kinds(given)
        assert tree.digest(grads) == before


@pytest.mark.parametrize("name", ALL)
def test_a_donated_update_writes_into_the_memory_that_was_given_up(name):
    optimizer, params, state = started(name)
    params, state = trained(optimizer, params, state, 0, 6)
    places = [leaf.data_ptr() for leaf in tree.leaves(params)]
    params, state = trained(optimizer, params, state, 6, 12, donate=True)
    assert [leaf.data_ptr() for leaf in tree.leaves(params)] == places


@pytest.mark.parametrize("name", ["adamw fused", "sgd momentum foreach", "rmsprop loop", "every 1", "tunable adamw"])
def test_what_shares_memory_is_updated_with_the_same_bits_when_donated(name):
    """Tied, expanded and sliced parameters, and a gradient that is the parameter itself."""
    optimizer, tied = ALL[name].build(lr=0.1), torch.randn(4)
    params = {"a": tied, "b": tied, "c": torch.ones(1).expand(3), "d": torch.randn(6)[::2]}
    grads = {"a": torch.randn(4), "b": torch.randn(4), "c": torch.randn(3), "d": params["d"]}
    wanted = optimizer.update(grads, optimizer.init(params), params)
    assert tree.equal(optimizer.update(grads, optimizer.init(params), params, donate=True), wanted)


@pytest.mark.parametrize("name", [name for name in NATIVE if not name.startswith("muon")] + ["every", "groups"])
def test_what_is_refused_when_donated_leaves_the_state_whole(name):
    optimizer, params, state = started(name)
    params, state = trained(optimizer, params, state, 0, 1)
    before = tree.digest((params, state))
    grads = {**grads_at(1, params), "scale": torch.ones(2)}
    with pytest.raises(ValueError, match="scale"):
        optimizer.update(grads, state, params, donate=True)
    assert tree.digest((params, state)) == before


@pytest.mark.parametrize("name", ALL)
def test_every_two_updates_with_the_mean_of_two_gradients(name):
    optimizer, params, inner = started(name)
    outer = optim.every(2, optimizer)
    state, wanted = outer.init(params), params
    for step in range(3):
        first, second = grads_at(2 * step, params), grads_at(2 * step + 1, params)
        mean = tree.map(lambda a, b: (a + 3 * b) / 4, first, second)
        wanted, inner = optimizer.update(mean, inner, wanted, weight=4)
        params, state = outer.update(first, state, params, weight=1)
        params, state = outer.update(second, state, params, weight=3)
        assert tree.equal((params, state.inner), (wanted, inner))


@pytest.mark.parametrize("name", TRACED)
def test_a_formula_agrees_with_the_kernels(name):
    """Recorded by autograd: parameters, slots, count and monitor."""
    optimizer, params, state = started(name, lr=schedules.warmup_cosine(0.05, 2, 9))
    for step in range(6):
        grads = grads_at(step, params)
        recorded = tree.map(lambda leaf: leaf.clone().requires_grad_(), grads)
        found = optimizer.update(recorded, state, params, weight=step + 1)
        params, state = optimizer.update(grads, state, params, weight=step + 1)
        assert kinds(found) == kinds((params, state))
        assert_close(found, (params, state), name)
        assert optimizer.count(found[1]) == optimizer.count(state)
        assert optimizer.monitor(found[1]) == optimizer.monitor(state)


@pytest.mark.parametrize("name", TRACED)
def test_three_members_under_vmap_equal_their_separate_runs(name):
    optimizer, params, state = started(name, lr=schedules.warmup_cosine(0.05, 2, 9))
    members = [(tree.map(lambda leaf, k=k: leaf * (k + 1), params), copied(state)) for k in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)

    def update(grads, params, state, weight):
        params, state = optimizer.update(grads, state, params, weight=weight)
        return params, state, optimizer.count(state), optimizer.monitor(state)

    for step in range(4):
        grads = [grads_at(10 * step + k, params) for k in range(3)]
        # Members may have done different numbers of updates: their weights differ, and one is 0.
        weights = torch.tensor([1.0, float(step % 2), 2.0], dtype=torch.float64)
        given = tree.map(lambda *leaves: torch.stack(leaves), *grads)
        *stacked, count, monitor = torch.vmap(update)(given, *stacked, weights)
        members = [
            optimizer.update(grads[k], member[1], member[0], weight=float(weights[k]))
            for k, member in enumerate(members)
        ]
    assert_close(tuple(stacked), tree.map(lambda *leaves: torch.stack(leaves), *members), name, 5e-6)
    assert count.tolist() == [optimizer.count(state) for _, state in members]
    for key, values in monitor.items():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx([optimizer.monitor(state)[key] for _, state in members])


def flat(optimizer, params, state, updates: int):
    """The parameters after some updates as a function of all floating leaves: gradients, parameters, state."""
    grads = [grads_at(step, params) for step in range(updates)]
    leaves, treespec = tree.flatten((grads, params, state))
    # The weight that `every` has pending is read on the host.
    paths = tree.paths((grads, params, state))
    moving = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point() and not paths[i].endswith(".weight")]

    def function(*given):
        now = list(leaves)
        for i, leaf in zip(moving, given, strict=True):
            now[i] = leaf
        grads, params, state = tree.unflatten(treespec, now)
        for step in range(updates):
            params, state = optimizer.update(grads[step], state, params)
        return tuple(tree.leaves(params))

    return function, [leaves[i].clone().requires_grad_() for i in moving]


@pytest.mark.parametrize("name", [name for name in FORMULAS if ALL[name].smooth])
def test_derivatives_of_updates_equal_finite_differences(name):
    """With respect to gradients, parameters, slots, and hyperparameters that are tensors."""
    optimizer, params, state = started(name, lr=0.1, dtypes=DTYPES["float64"])
    params, state = trained(optimizer, params, state, 0, 6)  # slots that are not zero
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function, inputs = flat(optimizer, params, state, 3)
        assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in FORMULAS if ALL[name].smooth])
def test_derivatives_are_finite_where_gradients_are_zero(name):
    """From the first update on, as for parameters that a network does not use."""
    optimizer, params, state = started(name, lr=0.1)
    grads = tree.map(lambda leaf: torch.zeros_like(leaf).requires_grad_(), params)
    for _ in range(3):
        params, state = optimizer.update(grads, state, params)
    loss = sum(leaf.square().sum() for leaf in tree.leaves(params))
    assert all(
        torch.isfinite(grad).all()
        for grad in torch.autograd.grad(loss, tree.leaves(grads), allow_unused=True)
        if grad is not None
    )


def compiled_update(optimizer, donate: bool, backend: str):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def update(grads, state, params, weight):
        params, state = optimizer.update(grads, state, params, weight=weight, donate=donate)
        return params, state, optimizer.count(state), optimizer.monitor(state)

    return torch.compile(update, fullgraph=True, dynamic=False, backend=backend)


def check_compiled(name: str, donate: bool, backend: str):
    optimizer, params, state = started(name, lr=schedules.warmup_cosine(0.05, 2, 9))
    update = compiled_update(optimizer, donate, backend)
    found = copied((params, state))
    for step in range(4):
        grads, weight = grads_at(step, params), torch.tensor(step % 3 + 1.0, dtype=torch.float64)
        places = [leaf.data_ptr() for leaf in tensors(found)]
        *found, count, monitor = update(grads, found[1], found[0], weight)
        params, state = optimizer.update(grads, state, params, weight=float(weight))
        assert not donate or [leaf.data_ptr() for leaf in tensors(found)] == places
    assert_close(tuple(found), (params, state), name, 5e-6)
    assert int(count) == optimizer.count(state)
    assert {key: float(value) for key, value in monitor.items()} == pytest.approx(optimizer.monitor(state))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["adamw amsgrad maximize loop", "every", "groups frozen", "tunable sgd"])
def test_an_update_compiles_into_one_graph_that_serves_all_updates(name):
    check_compiled(name, donate=True, backend="eager")


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_update_compiles(name, donate, backend):
    check_compiled(name, donate=donate, backend=backend)


@pytest.mark.parametrize("name", ["from_torch NAdam foreach=False", "every adapted"])
def test_an_adapted_class_cannot_be_traced_and_says_what_to_do(name):
    optimizer, params, state = started(name)
    grads = tree.map(lambda leaf: leaf.clone().requires_grad_(), params)
    with pytest.raises(NotTraceable, match=r"NAdam .* take one of the optimisers of hf\.optim"):
        trained_with(grads, optimizer, params, state)


def trained_with(grads, optimizer, params, state):
    for _ in range(2):
        params, state = optimizer.update(grads, state, params)


@pytest.mark.parametrize("name", ALL)
def test_the_description_is_the_same_for_equal_optimisers_and_holds_no_address(name):
    lr = schedules.cosine(0.1, 10)
    build = ALL[name].build
    assert repr(build(lr=lr)) == repr(build(lr=lr))
    assert "0x" not in repr(build(lr=lambda count: 0.1))
    assert "cosine(start=0.1, steps=10, end=0.0)" in repr(build(lr=lr))


@pytest.mark.parametrize("name", ALL)
def test_monitor_tells_the_rate_of_the_last_update_or_of_the_first_to_come(name):
    optimizer, params, state = started(name, lr=lambda count: 0.1 * (count + 1))
    assert set(optimizer.monitor(state).values()) == {0.1}
    for step in range(6):
        params, state = trained(optimizer, params, state, step, step + 1)
        last = max(optimizer.count(state) - 1, 0)
        assert set(optimizer.monitor(state).values()) == {0.1 * (last + 1)}
    assert optimizer.count(state) >= 2


@pytest.mark.parametrize(
    "name", ["adamw fused", "sgd fused", "from_torch NAdam foreach=False", "every", "chain", "lion"]
)
def test_a_tree_without_leaves_is_updated_to_itself(name):
    optimizer = ALL[name].build(lr=0.01)
    params, state = trained(optimizer, {}, optimizer.init({}), 0, 6)
    assert params == {}
    assert optimizer.count(state) >= 2
