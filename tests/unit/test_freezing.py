"""Freezing: parameters among the buffers, at no cost, with the same function."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import helios_fn as hf
from helios_fn import tree
from helios_fn.testing import check_resume

F = torch.nn.functional


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x))


MODEL, PARAMS, BUFFERS = hf.functional(Net)
BATCH = (torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 2)


def loss_of(model):
    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return F.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    return loss_fn


def test_it_is_the_same_function_and_the_inverse_gives_the_same_trees():
    """No tensor is copied, and the model and trees that were given stay as they are."""
    model, params, buffers = hf.freeze(MODEL, PARAMS, BUFFERS, "backbone.*")
    assert set(params) == {"head.bias", "head.weight"}
    assert buffers["backbone.0.weight"] is PARAMS["backbone.0.weight"]
    assert MODEL.param_names == tuple(PARAMS)
    found, new = model(params, buffers, BATCH[0])
    wanted, old = MODEL(PARAMS, BUFFERS, BATCH[0])
    assert torch.equal(found, wanted)
    assert all(torch.equal(new[name], old[name]) for name in old)
    back = hf.unfreeze(model, params, buffers, "*")
    assert tree.equal(back[1:], (PARAMS, BUFFERS))
    assert torch.equal(back[0](*back[1:], BATCH[0])[0], wanted)


@pytest.mark.parametrize("patterns", ["!head.*", ["backbone.0.*", "backbone.1.*", "backbone.3.*"]])
def test_patterns_choose_by_whole_names_and_freezing_again_changes_nothing(patterns):
    frozen = hf.freeze(MODEL, PARAMS, BUFFERS, patterns)
    assert set(frozen[1]) == {"head.bias", "head.weight"}
    assert tree.equal(hf.freeze(*frozen, patterns)[1:], frozen[1:])
    part = hf.unfreeze(*frozen, "backbone.3.*")
    assert set(part[1]) == {"head.bias", "head.weight", "backbone.3.bias", "backbone.3.weight"}


def test_frozen_parameters_cost_no_gradient_no_memory_and_no_term_of_a_sum():
    """They are the very same tensors after any number of iterations, and only the head has slots and an average."""
    model, params, buffers = hf.freeze(MODEL, PARAMS, BUFFERS, "backbone.*")
    optimizer, average = hf.optim.adamw(0.1), hf.ema(0.9)
    step = hf.make_step(loss_of(model), optimizer, average=average)
    state = hf.init_state(params, optimizer, buffers=buffers, average=average)
    assert set(state.opt_state.slots) == set(state.averages) == {"head.bias", "head.weight"}
    for batch in (BATCH, hf.MicroBatches((BATCH, BATCH), 0, 2)):
        after = step(state, batch)
        for name in ("backbone.0.weight", "backbone.3.bias"):
            assert after.buffers[name] is PARAMS[name]
        assert not torch.equal(after.params["head.weight"], PARAMS["head.weight"])


def test_nothing_before_the_first_trainable_layer_is_differentiated():
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(grad.shape)
            return grad

    class Spied(Net):
        def forward(self, x):
            return self.head(Spy.apply(self.backbone(x)))

    spied = hf.functional(Spied)
    for frozen in (False, True):
        model, params, buffers = hf.freeze(*spied, "backbone.*") if frozen else spied
        seen.clear()
        hf.value_and_grad(loss_of(model), has_aux=True)(params, buffers, BATCH, None)
        assert len(seen) == (0 if frozen else 1)


def test_the_trained_parameters_have_the_bits_of_torch_with_requires_grad_false():
    module = Net()
    module.load_state_dict({**PARAMS, **BUFFERS})
    module.backbone.requires_grad_(False)
    reference = torch.optim.AdamW(module.head.parameters(), lr=0.1, fused=True)
    model, params, buffers = hf.freeze(MODEL, PARAMS, BUFFERS, "backbone.*")
    step, optimizer = hf.make_step(loss_of(model), hf.optim.adamw(0.1)), hf.optim.adamw(0.1)
    state = hf.init_state(params, optimizer, buffers=buffers)
    for _ in range(3):
        reference.zero_grad()
        F.cross_entropy(module(BATCH[0]), BATCH[1]).backward()
        reference.step()
        state = step(state, BATCH)
    wanted = module.state_dict()
    assert all(torch.equal(leaf, wanted[name]) for name, leaf in {**state.params, **state.buffers}.items())


def test_a_run_resumes_and_a_second_phase_starts_from_it(tmp_path):
    """Phase two is a state of its own, with the trained head and the backbone trainable."""
    data = hf.Loader(torch.utils.data.TensorDataset(*BATCH), 3, workers=0)
    cfg = hf.RunConfig(unit="iteration", total=4, checkpoint_every=2, root=str(tmp_path / "one"), progress=False)
    model, params, buffers = hf.freeze(MODEL, PARAMS, BUFFERS, "backbone.*")
    optimizer = hf.optim.adamw(0.1)
    step, state = hf.make_step(loss_of(model), optimizer), hf.init_state(params, optimizer, buffers=buffers)
    check_resume(step, state, data, cfg)
    first = hf.run(step, state, data, cfg).state
    model, params, buffers = hf.unfreeze(model, first.params, first.buffers, "*")
    second = hf.init_state(params, optimizer, buffers=buffers)
    after = hf.run(
        hf.make_step(loss_of(model), optimizer), second, data, dataclasses.replace(cfg, root=str(tmp_path / "two"))
    ).state
    assert set(after.opt_state.slots) == set(PARAMS)
    assert not torch.equal(after.params["backbone.0.weight"], PARAMS["backbone.0.weight"])
    assert tree.equal(first.buffers["backbone.0.weight"], PARAMS["backbone.0.weight"])


def test_tied_parameters_are_frozen_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    given = hf.functional(Tied)
    model, params, buffers = hf.freeze(*given, "first.*")
    assert set(params) == {"second.bias"}
    assert torch.equal(model(params, buffers, BATCH[0])[0], given[0](*given[1:], BATCH[0])[0])


def test_mistakes_are_named():
    for function in (hf.freeze, hf.unfreeze):
        with pytest.raises(ValueError, match=r"'back.0.\*' matches no parameter; names close to it: 'backbone.0.bias'"):
            function(MODEL, PARAMS, BUFFERS, "back.0.*")
        with pytest.raises(TypeError, match="the model must be what functional"):
            function(loss_of(MODEL), PARAMS, BUFFERS, "*")
        with pytest.raises(ValueError, match=r"they have no 'head.bias'"):
            function(MODEL, {name: leaf for name, leaf in PARAMS.items() if name != "head.bias"}, BUFFERS, "head.*")
        with pytest.raises(TypeError, match="patterns must be a pattern"):
            function(MODEL, PARAMS, BUFFERS, [])
    with pytest.raises(ValueError, match="matches no parameter"):
        hf.unfreeze(MODEL, PARAMS, BUFFERS, "backbone.1.running_*")


def test_a_parameter_without_a_gradient_stays_frozen():
    module = nn.Linear(2, 2)
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(TypeError, match=r"'table' is torch\.int64 and has no gradient"):
        hf.unfreeze(*hf.functional(module), "table")
