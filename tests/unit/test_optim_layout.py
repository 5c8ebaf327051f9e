"""Recognising tensors: both ways of it agree, and nothing that kernels depend on goes unseen."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from helios_fn import optim, tree
from helios_fn.signature import Signature, comparison, guards

from .optimisers import grads_at, params_of, trained

BASE = torch.arange(12.0).reshape(4, 3)
OTHERS = {
    "another shape": torch.ones(3, 4),
    "another stride": BASE.t().contiguous().t(),
    "another dtype": BASE.double(),
    "another device": BASE.to("meta"),
    "another type": torch.nn.Parameter(BASE.clone()),
    "recorded": BASE.clone().requires_grad_(),
    "sparse": BASE.to_sparse(),
    "a view of more": torch.ones(8, 3)[::2],
    "expanded": torch.ones(3).expand(4, 3),
    "a number": 3.0,
    "nothing": None,
}


@pytest.mark.parametrize("make", [guards, comparison])
def test_equal_kinds_match_whatever_the_values_and_others_do_not(make):
    matches = make([BASE, torch.ones(2)])
    assert matches(BASE + 1, torch.zeros(2))
    for name, other in OTHERS.items():
        assert not matches(other, torch.zeros(2)), name
    complex_matches = make([torch.ones(2, dtype=torch.complex64)])
    assert not complex_matches(torch.ones(2, dtype=torch.complex64).conj())


def test_a_signature_is_not_matched_by_more_or_fewer_tensors():
    signature = Signature([BASE, BASE])
    assert not signature.matches([BASE])
    assert not signature.matches([BASE, BASE, BASE])
    assert Signature([]).matches([])


def test_a_signature_keeps_no_tensor_alive():
    tensor = torch.ones(3)
    alive = weakref.ref(tensor)
    signature = Signature([tensor])
    del tensor
    gc.collect()
    assert alive() is None
    assert signature.matches([torch.zeros(3)])


def test_an_update_without_the_compilers_check_has_the_same_bits(monkeypatch):
    params = params_of()
    optimizer = optim.adamw(0.1)
    wanted = trained(optimizer, params, optimizer.init(params), 0, 3)
    monkeypatch.setattr("helios_fn.signature._Guards", None)
    plain = optim.adamw(0.1)
    assert tree.equal(trained(plain, params, plain.init(params), 0, 3), wanted)


@pytest.mark.parametrize("donate", [False, True])
def test_bits_do_not_depend_on_what_was_updated_before(donate):
    """One optimiser for trees of several structures, shapes and memory layouts, in turns."""
    optimizer = optim.adamw(0.1)
    trees = [params_of(), {"a": torch.randn(3)}, {"a": torch.randn(4)}, {"a": torch.randn(4, 3).t()}, {"a": ()}]
    runs = [(params, optimizer.init(params)) for params in trees]
    wanted = [trained(optim.adamw(0.1), *run, 0, 3) for run in runs]
    runs = tree.map(torch.clone, runs)
    for step in range(3):
        runs = [
            optimizer.update(grads_at(step, params), state, params, weight=step % 3 + 1, donate=donate)
            for params, state in runs
        ]
    assert tree.equal(runs, wanted)


def test_the_state_of_another_algorithm_is_refused_though_its_shapes_fit():
    """RMSprop with momentum keeps as many slots as Adam, of the same shapes."""
    params = params_of()
    foreign = optim.rmsprop(momentum=0.9).init(params)
    with pytest.raises(ValueError, match=r"not made by adamw\(.*other slots"):
        optim.adamw().update(params, foreign, params)
