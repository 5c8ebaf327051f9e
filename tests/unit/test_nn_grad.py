"""Values and gradients, on both routes."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from helios_fn import random, tree
from helios_fn.nn import backward, functional, grad, value_and_grad
from helios_fn.types import Aux


class Net(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)

    def hidden(self, x):
        return self.drop(torch.relu(self.norm(self.first(x))))

    def forward(self, x):
        return self.last(checkpoint(self.hidden, x, use_reentrant=False) if self.recompute else self.hidden(x))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.randint(0, 3, (6,))


def loss_of(model):
    def loss_fn(params, buffers, batch, key):
        x, y = batch
        output, buffers = model(params, buffers, x, key=key)
        return F.cross_entropy(output, y), Aux(buffers=buffers, weight=len(y), metrics={"first": output[0, 0]})

    return loss_fn


def quadratic(params):
    return (params["a"] ** 2).sum() * params["b"].prod()


PARAMS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 0.5])}
QUADRATIC_GRADS = {"a": torch.tensor([3.0, 6.0]), "b": torch.tensor([2.5, 15.0])}


def test_both_routes_have_the_bits_of_the_imperative_module(batch):
    torch.manual_seed(1)
    module = Net()
    model, params, buffers = functional(module)
    key = random.key(5)
    with random.scope(key):
        expected = F.cross_entropy(module(batch[0]), batch[1])
    expected.backward()
    wanted = {name: parameter.grad for name, parameter in module.named_parameters()}
    for higher_order in (False, True):
        both = value_and_grad(loss_of(model), has_aux=True, higher_order=higher_order)
        (loss, aux), grads = both(params, buffers, batch, key)
        assert tree.equal((loss, grads), (expected.detach(), wanted))
        assert tree.equal(aux.buffers, {name: buffer.clone() for name, buffer in module.named_buffers()})
        assert aux.weight == 6
        assert not any(leaf.requires_grad for leaf in tree.leaves((loss, grads, aux)) if isinstance(leaf, torch.Tensor))


def test_no_input_is_written_and_no_grad_field_touched():
    params = tree.map(torch.clone, PARAMS)
    grad(quadratic)(params)
    assert tree.equal(params, PARAMS)
    assert all(leaf.grad is None and not leaf.requires_grad for leaf in tree.leaves(params))


class Saved:
    """What a graph keeps instead of a tensor."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_nothing_that_comes_back_keeps_a_graph_alive():
    kept = []

    def pack(tensor):
        saved = Saved(tensor.detach())
        kept.append(weakref.ref(saved))
        return saved

    def loss_fn(params):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            return params["a"].sum(), {"no part of the loss": params["a"].exp(), "text": "as it is"}

    (_, aux), _ = value_and_grad(loss_fn, has_aux=True)(PARAMS)
    gc.collect()
    assert kept
    assert all(reference() is None for reference in kept)
    assert tree.equal(aux, {"no part of the loss": PARAMS["a"].exp(), "text": "as it is"})


@pytest.mark.parametrize("higher_order", [False, True])
def test_unused_parameters_and_constant_losses_have_zero_gradients(higher_order):
    zeros = {"a": torch.zeros(2), "b": torch.zeros(2)}
    used = grad(lambda params: params["a"].sum(), higher_order=higher_order)(PARAMS)
    assert tree.equal(used, {"a": torch.ones(2), "b": torch.zeros(2)})
    value, grads = value_and_grad(lambda params: torch.tensor(2.0), higher_order=higher_order)(PARAMS)
    assert tree.equal((value, grads), (torch.tensor(2.0), zeros))


@pytest.mark.parametrize("higher_order", [False, True])
def test_on_constant_hears_of_values_that_depend_on_no_leaf_and_of_no_others(higher_order):
    other, heard = torch.ones(2, requires_grad=True), []

    def loss_of(kind, params):
        a = params["a"]
        loss = {"used": a, "detached": a.detach(), "constant": PARAMS["a"], "other": other, "both": a * other}[kind]
        return loss.sum(), kind

    for kind in ("used", "detached", "constant", "other", "both"):
        both = value_and_grad(loss_of, argnum=1, has_aux=True, higher_order=higher_order, on_constant=heard.append)
        both(kind, PARAMS)
    assert heard == ["detached", "constant", "other"]
    value_and_grad(lambda empty: torch.ones(()), higher_order=higher_order, on_constant=heard.append)({})
    assert len(heard) == 3, "where there are no leaves there is nothing to depend on"


@tree.register
@dataclasses.dataclass(frozen=True)
class Node:
    weight: Any
    rest: Any


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize("higher_order", [False, True])
@pytest.mark.parametrize(
    "params",
    [torch.ones(2), [torch.ones(2), (torch.ones(1), None)], Node(torch.ones(2), Pair(torch.ones(1), {})), {}],
    ids=["leaf", "lists", "nodes", "empty"],
)
def test_any_tree_of_parameters_and_any_aux_will_do(params, higher_order):
    def loss_fn(params):
        leaves = tree.leaves(params)
        total = sum(leaf.square().sum() for leaf in leaves) if leaves else torch.tensor(0.0)
        return total, Node({"total": total, "none": None}, Pair(1, [total * 2]))

    (value, aux), grads = value_and_grad(loss_fn, has_aux=True, higher_order=higher_order)(params)
    assert tree.equal(grads, tree.map(lambda leaf: 2 * leaf, params))
    assert tree.equal(aux, Node({"total": value, "none": None}, Pair(1, [value * 2])))


def test_the_argument_is_chosen_by_position_and_keywords_pass_through():
    def loss_fn(x, params, *, scale):
        return scale * (x * params).sum()

    assert tree.equal(grad(loss_fn, argnum=1)(torch.tensor([2.0]), torch.ones(1), scale=3.0), torch.tensor([6.0]))
    with pytest.raises(TypeError, match="argnum=2, but the function was called with 1 positional arguments"):
        grad(loss_fn, argnum=2)(torch.ones(1))


def test_grad_returns_aux_beside_the_gradients():
    grads, aux = grad(lambda x: (x.sum(), "aux"), has_aux=True)(torch.ones(2))
    assert tree.equal((grads, aux), (torch.ones(2), "aux"))


# Where torch.autograd.grad on detached leaves would lose a derivative, or all of them.


def test_in_inference_mode_gradients_are_not_silently_zero():
    with torch.inference_mode():
        value, grads = value_and_grad(quadratic)(PARAMS)
        inference_made = grad(quadratic)(tree.map(torch.clone, PARAMS))
    assert tree.equal((value, grads), (torch.tensor(7.5), QUADRATIC_GRADS))
    assert tree.equal(inference_made, QUADRATIC_GRADS)


def test_under_no_grad_gradients_are_the_same():
    with torch.no_grad():
        assert tree.equal(grad(quadratic)(PARAMS), QUADRATIC_GRADS)
        leaf = torch.ones(2, requires_grad=True)
        assert not grad(torch.sum)(leaf).requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_transforms_nest_around_it():
    def cubic(x):
        return (x**3).sum()

    x = torch.tensor([1.0, 2.0])
    assert tree.equal(torch.func.grad(lambda x: grad(cubic)(x).sum())(x), 6 * x)
    assert tree.equal(torch.vmap(grad(cubic))(x), 3 * x**2)
    assert tree.equal(torch.func.jvp(grad(cubic), (x,), (torch.ones(2),))[1], 6 * x)
    assert tree.equal(torch.func.jacrev(grad(cubic))(x), torch.diag(6 * x))
    assert tree.equal(grad(lambda x: grad(cubic)(x).sum())(x), 6 * x)


def test_an_outer_graph_gets_its_derivative_through_params_and_through_other_arguments():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (second,) = torch.autograd.grad(grad(lambda x: (x**3).sum())(x).sum(), x)
    assert tree.equal(second, 6 * x.detach())
    scale = torch.tensor(2.0, requires_grad=True)
    inner = grad(lambda params, batch: (params**2).sum() * batch["scale"])(x.detach(), {"scale": scale})
    (through,) = torch.autograd.grad(inner.sum(), scale)
    assert through == 2 * x.sum()


def test_higher_order_keeps_closed_over_tensors_differentiable():
    scale = torch.tensor(2.0, requires_grad=True)
    x = torch.tensor([1.0, 2.0])
    inner = grad(lambda params: (params**2).sum() * scale, higher_order=True)(x)
    assert torch.autograd.grad(inner.sum(), scale)[0] == 6
    assert not grad(lambda params: (params**2).sum() * scale)(x).requires_grad


def test_a_compiled_region_has_the_same_bits(batch):
    model, params, buffers = functional(Net)

    def loss_fn(params, buffers, batch):
        output, buffers = model.eval(params, buffers, batch[0])
        return F.cross_entropy(output, batch[1]), Aux(buffers=buffers, weight=len(batch[1]), metrics={})

    both = value_and_grad(loss_fn, has_aux=True)
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    assert tree.equal(compiled(params, buffers, batch), both(params, buffers, batch))


# What only torch.autograd.grad can do.


@pytest.mark.parametrize("calls", [1, 2])
def test_modules_that_recompute_activations_get_the_same_gradients_and_buffers(batch, calls):
    """The recomputation happens after the call: it must find weights, noise and buffers of that call."""
    results = []
    for recompute in (False, True):
        model, params, buffers = functional(lambda recompute=recompute: Net(recompute), seed=1)
        other = tree.map(lambda leaf: leaf * 0.5, params)

        def loss_fn(params, buffers, batch, key, model=model, other=other):
            loss, aux = loss_of(model)(params, buffers, batch, key)
            if calls == 2:
                more, aux = loss_of(model)(tree.map(torch.mul, params, other), aux.buffers, batch, key)
                loss = loss + more
            return loss, aux

        before = tree.map(torch.clone, buffers)
        results.append(value_and_grad(loss_fn, has_aux=True)(params, buffers, batch, random.key(2)))
        assert tree.equal(buffers, before)
        assert all(skeleton.module.last.weight.is_meta for skeleton in model._train._idle)
        assert len(model._train._idle) == calls
    assert tree.equal(*results)


def test_a_call_may_be_recomputed_as_a_whole(batch):
    model, params, buffers = functional(Net, seed=1)
    key = random.key(2)

    def loss_fn(params, recompute):
        def output(x):
            return model(params, buffers, x, key=key)[0]

        logits = checkpoint(output, batch[0], use_reentrant=False) if recompute else output(batch[0])
        return F.cross_entropy(logits, batch[1])

    assert tree.equal(value_and_grad(loss_fn)(params, True), value_and_grad(loss_fn)(params, False))


def test_unrolled_calls_on_the_same_tensors_share_one_skeleton():
    model, params, buffers = functional(lambda: nn.Linear(2, 2))

    def loss_fn(params):
        x = torch.ones(1, 2)
        for _ in range(5):
            x, _ = model(params, buffers, x)
        return x.sum()

    grad(loss_fn)(params)
    assert len(model._train._idle) == 1


def test_an_exception_gives_the_weights_back(batch):
    model, params, buffers = functional(Net)

    def loss_fn(params):
        model(params, buffers, batch[0])
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        grad(loss_fn)(params)
    (skeleton,) = model._train._idle
    assert skeleton.module.last.weight.is_meta


def test_old_style_autograd_functions_work():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, out):
            return out * 2

    assert tree.equal(grad(lambda x: Double.apply(x).sum())(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize("higher_order", [False, True])
@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda x: x * 2, ValueError, r"must be a 0-d tensor, got float32\[2\]: take its mean or sum"),
        (lambda x: 3.0, TypeError, "must be a 0-d tensor, got float 3.0"),
        (lambda x: (x.sum(), None), TypeError, "must be a 0-d tensor, got tuple"),
        (lambda x: x.sum() * 1j, TypeError, "must be real, got complex64"),
    ],
)
def test_a_loss_that_is_no_real_scalar_is_refused(loss, error, message, higher_order):
    with pytest.raises(error, match=message):
        grad(loss, higher_order=higher_order)(torch.ones(2))


def test_a_missing_aux_is_refused():
    with pytest.raises(TypeError, match=r"must return \(loss, aux\), got float32"):
        grad(torch.sum, has_aux=True)(torch.ones(2))


@pytest.mark.parametrize("higher_order", [False, True])
@pytest.mark.parametrize(
    ("leaf", "words"), [(torch.tensor(3), r"int64\[\]"), (torch.tensor(True), r"bool\[\]"), (2.0, "float 2.0")]
)
def test_leaves_without_gradient_are_refused_with_their_path(leaf, words, higher_order):
    params = {"layer": [torch.ones(1), leaf]}
    with pytest.raises(TypeError, match=rf"argument 0 .* holds {words} at \['layer'\]\[1\]: .* in the buffers"):
        grad(lambda params: params["layer"][0].sum(), higher_order=higher_order)(params)


@pytest.mark.parametrize("way", ["direct", "public"])
def test_derivatives_are_those_of_autograd_grad(way, monkeypatch):
    """By the engine, and by the public function where torch lacks that way: unused leaves, hooks, no ``.grad``."""
    if way == "public":
        monkeypatch.setattr(backward, "_run", None)
    torch.manual_seed(0)
    used, unused = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)

    def recorded():
        scaled = used * 2
        scaled.register_hook(lambda gradient: gradient * 3)
        return (scaled * used).sum(), [used, unused, scaled]

    found = backward.derivatives(*recorded())
    expected = torch.autograd.grad(*recorded(), allow_unused=True)
    assert found[1] is expected[1] is None
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    assert used.grad is None


def test_a_loss_of_another_class_keeps_its_own_rules():
    """A subclass with rules of its own is not handed to the engine behind its back."""

    class Told(torch.Tensor):
        asked: ClassVar[list[Any]] = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.asked.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    leaf = torch.ones(2, requires_grad=True)
    loss = (leaf.as_subclass(Told) * 2).sum()
    Told.asked.clear()
    assert torch.equal(backward.derivatives(loss, [leaf])[0], torch.full((2,), 2.0))
    assert torch.autograd.grad in Told.asked
