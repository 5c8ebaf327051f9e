"""The training state and its keys."""

from __future__ import annotations

import pytest
import torch

import helios_fn as hf
from helios_fn import tree
from helios_fn.state import give_away
from helios_fn.types import Counters, MicroBatches


def make(**keywords) -> hf.TrainState:
    return hf.init_state({"w": torch.ones(2)}, hf.optim.sgd(0.1), **keywords)


def test_the_state_is_an_immutable_tree():
    """Fields cannot be assigned; `replace` gives another state."""
    state = make()
    with pytest.raises(AttributeError):
        state.params = None
    assert state.replace(extra=3).extra == 3
    assert "params['w']" in tree.paths(state)
    assert "counters.iteration" in tree.paths(state)


def test_micro_keys_do_not_depend_on_who_holds_the_micro_batches():
    """However an iteration is cut into slices, micro-batch i has the same key."""
    state = make().replace(counters=Counters(3, 12))
    whole = hf.micro_keys(state, MicroBatches((0, 1, 2, 3), 0, 4))
    parts = hf.micro_keys(state, MicroBatches((0,), 0, 4)) + hf.micro_keys(state, MicroBatches((1, 2, 3), 1, 4))
    assert tree.equal(whole, parts)
    assert tree.equal(whole[:1], hf.micro_keys(state, "a plain batch"))
    assert len({tuple(key.tolist()) for key in whole}) == 4


def test_step_keys_differ_by_name_position_and_seed():
    """No two purposes, iterations or seeds share a key."""
    states = [make(seed=seed).replace(counters=Counters(i, i)) for seed in (0, 1) for i in range(3)]
    keys = {tuple(hf.step_key(state, name).tolist()) for state in states for name in ("a", "b")}
    assert len(keys) == 12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hf.init_state({"w": torch.ones(1)}, hf.optim.sgd(0.1), opt_state=()), ValueError, "not both"),
        (lambda: hf.init_state({}, hf.optim.sgd(0.1)), TypeError, "holds no tensor"),
        (lambda: hf.init_state({"w": torch.ones(1)}, seed="x"), TypeError, "seed"),
    ],
)
def test_mistakes_are_named(call, error, message):
    """Wrong arguments are refused."""
    with pytest.raises(error, match=message):
        call()


def test_the_default_seed_is_the_ancestors():
    """Helios seeds with 6691; so do we."""
    assert tree.equal(make().key, hf.random.key(6691))


def test_the_text_of_a_state_says_where_it_stands_and_what_it_holds():
    """One line, however large the tensors are: none of their values is in it."""
    params = {"weight": torch.full((1000, 250), 0.125), "bias": torch.zeros(4, dtype=torch.float64)}
    state = hf.init_state(params, extra={"best": 0.5, "seen": torch.zeros(2), "worst": 1.0})
    assert repr(state) == (
        "TrainState(iteration=0, epoch=0, params=<2 tensors, 1 MB>, extra=<1 tensor, 8 B and 2 values>)"
    )
    later = state.replace(counters=hf.Counters(7, 14), cursor=hf.Cursor(epoch=3), metrics={"loss": torch.ones(())})
    assert repr(later).startswith("TrainState(iteration=7, epoch=3, params=<2 tensors, 1 MB>, metrics=<1 tensor, 4 B>")


def test_the_text_of_a_state_never_fails():
    """Of a state that was given away, one without memory, one inside of a transform, and one of anything."""
    state = hf.init_state({"w": torch.ones(3)})
    assert "params=<1 tensor, 12 B>" in repr(hf.tree.map(lambda leaf: torch.as_tensor(leaf, device="meta"), state))
    seen = []

    def look(w):
        seen.append(repr(state.replace(params={"w": w})))
        return w.sum()

    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 3))
    assert seen == [repr(state)]
    assert "extra=<1 value>" in repr(state.replace(params=None, extra=object()))
    give_away(state)
    assert repr(state) == (
        "TrainState(iteration=0, epoch=0, params=<given away>, opt_state=<given away>, averages=<given away>)"
    )
