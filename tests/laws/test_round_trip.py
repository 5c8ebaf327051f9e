"""Law 4: a saved state comes back equal in value, types, strides, sharing and structure."""

from __future__ import annotations

import torch
from hypothesis import given, settings

import helios_fn as hf
from helios_fn import tree
from helios_fn.checkpoint import Store
from helios_fn.state import OUTPUT_ONLY
from helios_fn.testing import run_with

from ..jobs import Case, build
from ..strategies import cases, examples


def sharing(state) -> list[list[int]]:
    """Which leaves share memory, as groups of positions."""
    groups: dict[int, list[int]] = {}
    for position, leaf in enumerate(tree.leaves(state)):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            groups.setdefault(leaf.untyped_storage().data_ptr(), []).append(position)
    return sorted(groups.values())


@settings(max_examples=examples(20))
@given(case=cases())
def test_any_state_that_training_reaches_survives_a_save(tmp_path_factory, case: Case):
    """The final state of a generated job, saved and loaded into a fresh job's structure, is the same."""
    state = run_with(build(case), []).state
    store = Store(tmp_path_factory.mktemp("root"), "run")
    store.save(state, epoch=state.cursor.epoch, iteration=1, micro_step=1, record={})
    found = store.newest()
    loaded = store.load(found, build(case).state, free=OUTPUT_ONLY)
    assert tree.equal(loaded, state)
    assert tree.digest(loaded) == tree.digest(state)
    assert sharing(loaded) == sharing(state)
    strides = [leaf.stride() for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)]
    assert [leaf.stride() for leaf in tree.leaves(loaded) if isinstance(leaf, torch.Tensor)] == strides


def test_a_state_with_shared_and_strided_leaves_of_the_users_own_survives(tmp_path):
    """Views of one tensor in ``extra`` come back as views of one tensor, NaN and negative zero with their bits."""
    base = torch.arange(12.0).reshape(3, 4)
    base[0, 0], base[1, 1] = float("nan"), -0.0
    extra = {"whole": base, "row": base[1], "turned": base.t(), "scalar": -0.0, "big": 2**80, "text": "é"}
    optimizer = hf.optim.sgd(0.1)
    state = hf.init_state({"w": torch.ones(2)}, optimizer, extra=extra)
    store = Store(tmp_path, "run")
    store.save(state, epoch=0, iteration=0, micro_step=0, record={})
    loaded = store.load(store.newest(), state, free=OUTPUT_ONLY)
    assert tree.equal(loaded, state)
    assert sharing(loaded) == sharing(state)
    loaded.extra["row"].fill_(7.0)
    assert loaded.extra["whole"][1].tolist() == loaded.extra["turned"][:, 1].tolist() == [7.0] * 4
