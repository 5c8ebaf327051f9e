"""Parameter groups: which optimiser a parameter gets, and what it costs to be wrong."""

from __future__ import annotations

import pytest
import torch

from helios_fn import optim, tree

from .optimisers import grads_at, params_of, trained


def test_each_parameter_is_updated_by_the_first_pattern_that_matches():
    params = params_of()
    optimizer = optim.groups({"layer.b*": optim.sgd(0.5), "layer.*": optim.lion(0.1)}, default=optim.adamw(0.2))
    grads = grads_at(0, params)
    new, _ = optimizer.update(grads, optimizer.init(params), params)
    alone = {"bias": optim.sgd(0.5), "weight": optim.lion(0.1)}
    for name, part in alone.items():
        own = {name: params["layer"][name]}
        wanted, _ = part.update({name: grads["layer"][name]}, part.init(own), own)
        assert tree.equal(new["layer"][name], wanted[name])
    default = optim.adamw(0.2)
    wanted, _ = default.update(grads["scale"], default.init(params["scale"]), params["scale"])
    assert tree.equal(new["scale"], wanted)


@pytest.mark.parametrize("pattern", ["layer.weight", "['layer']['weight']", "*weight", "layer.[!b]*"])
def test_a_pattern_may_be_a_name_a_path_or_a_shell_pattern(pattern):
    params = params_of()
    optimizer = optim.groups({pattern: None}, default=optim.sgd(1.0))
    new, _ = optimizer.update(grads_at(0, params), optimizer.init(params), params)
    same = [path for path, leaf in tree.items(new) if any(leaf is old for old in tree.leaves(params))]
    assert same == ["['layer']['weight']"]


def test_frozen_parameters_stay_the_very_same_and_need_no_gradient():
    params = params_of()
    optimizer = optim.groups({"layer.*": None}, default=optim.adamw(0.1))
    state = optimizer.init(params)
    grads = {"layer": {"bias": None, "weight": None}, "scale": torch.ones(())}
    new, state = optimizer.update(grads, state, params)
    assert new["layer"]["bias"] is params["layer"]["bias"]
    assert not tree.equal(new["scale"], params["scale"])
    assert list(state.parts) == ["default"]
    assert list(state.parts["default"].slots) == ["scale"]


def test_where_all_is_frozen_nothing_moves():
    params = params_of()
    optimizer = optim.groups({"*": None}, default=None)
    new, state = trained(optimizer, params, optimizer.init(params), 0, 2)
    assert tree.equal(new, params)
    assert optimizer.count(state) == 0
    assert optimizer.monitor(state) == {}


def test_monitor_names_each_group_and_count_follows_the_one_that_made_most_updates():
    params = params_of()
    slow = optim.every(2, optim.sgd(0.5))
    optimizer = optim.groups({"scale": slow}, default=optim.adamw(lambda count: 0.1 * (count + 1)))
    _, state = trained(optimizer, params, optimizer.init(params), 0, 3)
    assert optimizer.count(state) == 3
    assert optimizer.monitor(state) == {"learning_rate/scale": 0.5, "learning_rate": pytest.approx(0.3)}


def test_slots_are_found_by_pattern_and_name():
    optimizer = optim.groups({"*.bias": optim.sgd(0.1, momentum=0.9)}, default=optim.adamw())
    state = optimizer.init(params_of())
    assert state.parts["*.bias"].slots["layer.bias"]["momentum_buffer"].shape == (5,)
    assert set(state.parts["default"].slots) == {"layer.weight", "scale"}


def test_names_that_coincide_are_told_apart_by_their_paths():
    params = {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}
    optimizer = optim.groups({"['a']['b']": None}, default=optim.sgd(1.0))
    new, _ = optimizer.update(params, optimizer.init(params), params)
    assert (new["a.b"].item(), new["a"]["b"].item()) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"layer.wieght": None}, r"'layer.wieght' matches no parameter; names close to it: 'layer.weight'"),
        ({"*": None, "scale": optim.sgd()}, r"'scale' matches only what earlier ones took, such as 'scale' by '\*'"),
    ],
)
def test_a_pattern_without_parameters_is_refused_by_init(patterns, words):
    with pytest.raises(ValueError, match=words):
        optim.groups(patterns, default=optim.adamw()).init(params_of())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.groups({}, default=optim.sgd()), ValueError, "needs patterns"),
        (lambda: optim.groups([optim.sgd()], default=None), ValueError, "needs patterns"),
        (lambda: optim.groups({"default": optim.sgd()}, default=None), ValueError, "write groups"),
        (lambda: optim.groups({3: optim.sgd()}, default=None), TypeError, "must be a string"),
        (lambda: optim.groups({"*": optim.sgd}, default=None), TypeError, r"for '\*', .*call it, as in sgd\(\.\.\.\)"),
        (lambda: optim.groups({"*": None}, default=optim.clip_by_value(1.0)), TypeError, "for 'default'"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_muon_points_at_groups_and_works_in_them():
    params = params_of()
    with pytest.raises(ValueError, match=r"params\['layer'\]\['bias'\] is float32\[5\].*groups\("):
        optim.muon().init(params)
    optimizer = optim.groups({"*.weight": optim.muon(0.1)}, default=optim.adamw())
    new, _ = trained(optimizer, params, optimizer.init(params), 0, 2)
    assert not tree.equal(new["layer"]["weight"], params["layer"]["weight"])
