"""What the adaptor promises beyond the laws of `test_optim`: nothing hidden, nothing leaked."""

from __future__ import annotations

import threading

import pytest
import torch

from helios_fn import optim, tree
from helios_fn.optim import from_torch, schedules

from .optimisers import grads_at, kinds, params_of, trained


class Counting(torch.optim.Optimizer):
    """Does what third parties do: Python scalars, nested and absent slots, settings that change and change
    back, writes to its gradients."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0, "odd": False, "scale": torch.ones(())})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["odd"] = not group["odd"]
            group["scale"] = group["scale"] * 0.9
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, seen=False, total=0.5, history=[torch.zeros_like(p)], nothing=None)
                state["step"] += 1
                state["total"] += state["step"] / 3
                state["seen"] = True
                p.grad.add_(p, alpha=0.1 if group["odd"] else 0.2)
                state["history"][0].add_(p.grad, alpha=state["total"])
                p.add_(state["history"][0], alpha=-group["lr"] / group["k"]).mul_(group["scale"])


class Attribute(torch.optim.SGD):
    """Counts in an attribute, where nobody can find it."""

    steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=1 / self.steps)


class Noisy(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.add_(torch.randn_like(p))


class Late(torch.optim.SGD):
    """Makes a slot in its n-th step."""

    at = 2

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            if state["step"] >= self.at:
                state["late"] = torch.zeros_like(p)


class Later(Late):
    at = 4


class Named(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["name"] = "text"


class Shared(torch.optim.SGD):
    """Keeps state for something that is no parameter."""

    @torch.no_grad()
    def step(self, closure=None):
        self.state["all"] = torch.zeros(1)


class OwnRate(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        self.param_groups[0]["lr"] *= 0.5


class Split(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__([{"params": [p]} for p in params], lr=lr)


def test_scalars_nested_slots_and_settings_are_kept_exactly():
    params = params_of()
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    reference = Counting(leaves)
    optimizer = from_torch(Counting)
    state = optimizer.init(params)
    shape = kinds(state)
    for step in range(20):
        for leaf, grad in zip(leaves, tree.leaves(grads_at(step, params)), strict=True):
            leaf.grad = grad
        reference.step()
        params, state = trained(optimizer, params, state, step, step + 1)
        assert tree.equal(tree.leaves(params), [leaf.detach() for leaf in leaves])
        assert kinds(state) == shape
    assert state.settings.keys() == {"k", "odd", "scale"}
    assert state.settings["k"] == 20
    slots, wanted = state.slots["layer"]["weight"], reference.state[leaves[1]]
    assert {name: type(slots[name]) for name in slots} == {name: type(wanted[name]) for name in wanted}
    assert tree.equal(slots["total"], wanted["total"])


def test_a_class_that_writes_to_its_gradients_does_not_write_to_the_callers():
    optimizer = from_torch(Counting)
    params = params_of()
    grads = grads_at(0, params)
    before = tree.digest(grads)
    optimizer.update(grads, optimizer.init(params), params)
    assert tree.digest(grads) == before


def test_a_rate_that_the_class_sets_itself_is_state_and_excludes_a_schedule():
    optimizer = from_torch(OwnRate, lr=0.8)
    _, state = trained(optimizer, params_of(), optimizer.init(params_of()), 0, 3)
    assert optimizer.monitor(state) == {"learning_rate": 0.1}
    with pytest.raises(TypeError, match="OwnRate sets its own learning rate"):
        from_torch(OwnRate, lr=schedules.constant(0.1)).init(params_of())


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Attribute, "Attribute cannot be made pure: its second step depends on more"),
        (Noisy, "Noisy cannot be made pure"),
        (Late, "Late changed the structure of its memory in update 2"),
        (Named, "Named keeps str 'text' in .*name.*, which cannot be saved"),
        (Shared, "Shared keeps state for 'all', which is no parameter"),
        (Split, "Split makes 3 parameter groups, not one"),
    ],
)
def test_classes_with_hidden_memory_are_refused_by_init(cls, words):
    with pytest.raises(TypeError, match=words):
        from_torch(cls).init(params_of())


def test_a_structure_that_changes_later_is_refused_by_that_update():
    optimizer = from_torch(Later)
    params, state = trained(optimizer, params_of(), optimizer.init(params_of()), 0, 3)
    with pytest.raises(TypeError, match="Later changed the structure of its memory in update 4"):
        trained(optimizer, params, state, 3, 4)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: from_torch(torch.optim.LBFGS), TypeError, "LBFGS.step needs closure"),
        (
            lambda: from_torch(torch.optim.SparseAdam),
            TypeError,
            "sparse gradients, and gradients here are dense: use adam",
        ),
        (lambda: from_torch(torch.nn.Linear), TypeError, "a subclass of torch.optim.Optimizer"),
        (
            lambda: from_torch(torch.optim.SGD([torch.ones(1)])),
            TypeError,
            "an instance of SGD: hand over the class SGD",
        ),
        (
            lambda: from_torch(
                torch.optim.SGD, lr=torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 2)
            ),
            TypeError,
            "lr is torch's StepLR",
        ),
        (lambda: from_torch(torch.optim.RMSprop, momentun=0.9), TypeError, "RMSprop does not take .*momentun"),
        (lambda: from_torch(torch.optim.RMSprop, differentiable=True), ValueError, "differentiable=True is refused"),
        (lambda: from_torch(torch.optim.RMSprop, lr=-1.0).init(params_of()), ValueError, "Invalid learning rate: -1.0"),
        (
            lambda: from_torch(torch.optim.Muon).init({"a": torch.ones(2, 2), "b": torch.ones(2)}),
            ValueError,
            r"Muon refuses params\['b'\]: Muon only supports 2D",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_the_reason(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_absent_slots_stay_absent_until_the_first_update():
    """SGD takes the first gradient for its velocity, undamped: placeholders must not be read."""
    optimizer = from_torch(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.9)
    params = {"w": torch.zeros(2)}
    state = optimizer.init(params)
    assert torch.equal(state.slots["w"]["momentum_buffer"], torch.zeros(2))
    _, state = optimizer.update({"w": torch.ones(2)}, state, params)
    assert torch.equal(state.slots["w"]["momentum_buffer"], torch.ones(2))


def test_a_failed_update_leaves_nothing_behind():
    optimizer = from_torch(torch.optim.NAdam)
    params = params_of()
    state = optimizer.init(params)
    wanted = trained(optimizer, params, state, 0, 3)
    with pytest.raises(ValueError, match="grads"):
        optimizer.update({"layer": None}, state, params)
    assert all(leaf.grad is None for leaf in tree.leaves(params))
    assert tree.equal(trained(optimizer, params, state, 0, 3), wanted)


def test_one_optimiser_serves_several_threads():
    optimizer = from_torch(torch.optim.RAdam, foreach=False)
    inputs = [params_of(seed=seed) for seed in range(4)]
    wanted = [trained(optimizer, params, optimizer.init(params), 0, 10) for params in inputs]
    found = [None] * 4

    def work(index):
        torch.set_num_threads(1)
        found[index] = trained(optimizer, inputs[index], optimizer.init(inputs[index]), 0, 10)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree.equal(found, wanted)


def test_the_native_optimisers_and_the_adapted_classes_keep_the_same_slots():
    params = params_of()
    native, adapted = optim.adamw(0.1), from_torch(torch.optim.AdamW, lr=0.1, fused=True)
    (left, here), (right, there) = (trained(o, params, o.init(params), 0, 5) for o in (native, adapted))
    assert tree.equal(left, right)
    slots = there.slots["layer"]["bias"]
    slots.pop("step")
    assert tree.equal(here.slots["layer"]["bias"], slots)
