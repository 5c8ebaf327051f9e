"""Terms in rooms have the bits of the arithmetic that everybody shares, and their memory is never seen from outside."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import accumulate
from helios_fn.distributed import rooms
from helios_fn.distributed.buckets import buckets
from helios_fn.distributed.rooms import Loose, Packing

WEIGHTS = st.one_of(st.integers(0, 3), st.floats(0, 9), st.floats(0, 9).map(lambda w: torch.tensor(w)))


def results(seed: int) -> list[torch.Tensor]:
    """A weight of one, leaves of several dtypes (one in another order in memory, one empty), and a counter."""
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(shape, generator=generator) for shape in ((), (5,), (2, 3, 4, 5), (0, 3), (7, 3))]
    grads[2] = grads[2].to(memory_format=torch.channels_last)
    grads[4] = grads[4].to(torch.bfloat16)
    return [torch.ones((), dtype=torch.float64), *grads, torch.randint(0, 9, (3,), generator=generator)]


def packing_of(leaves: list[torch.Tensor]) -> Packing:
    dtypes = [accumulate.accumulator_dtype(leaf) for leaf in leaves]
    return Packing(buckets(leaves, dtypes=dtypes, in_memory_order=True), leaves)


def loose(packing: Packing, leaves: list[torch.Tensor], weight, index: int) -> Loose:
    return Loose(packing, leaves, weight, 1 if index == 0 else 0, matching=packing.matches(leaves))


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4), turned=st.booleans(), seed=st.integers(0, 99))
def test_a_sum_in_a_room_has_the_bits_of_the_shared_arithmetic(weights, turned, seed):
    """Whatever the weights are, how later leaves lie in memory, and what the memory held before."""
    rows = [results(seed + at) for at in range(len(weights))]
    if turned:
        rows[1:] = [[leaf.t().contiguous().t() if leaf.dim() == 2 else leaf for leaf in row] for row in rows[1:]]
    packing = packing_of(rows[0])
    for _ in range(2):
        total = loose(packing, rows[0], weights[0], 0).packed()
        floats, others = accumulate.scale(rows[0][:-1], weights[0]), accumulate.scale(rows[0][-1:], 1)
        for at in range(1, len(rows)):
            loose(packing, rows[at], weights[at], at).add_to(total)
            accumulate.add_(floats, accumulate.scale(rows[at][:-1], weights[at]))
        assert hf.tree.equal(packing.leaves(total[0]), [*floats, *others])
        assert hf.tree.equal(total.views, [*floats, *others])
        packing.give_back(total)


def test_memory_is_kept_once_and_only_where_it_is_small(monkeypatch):
    packing = packing_of(results(0))
    held = [packing.room() for _ in range(4)]
    packing.give_back(*held, held[0])
    again = [packing.room() for _ in range(4)]
    assert len({id(term) for term in again}) == 4
    assert len({id(term) for term in held} & {id(term) for term in again}) == rooms._MOST_KEPT
    monkeypatch.setattr(rooms, "KEPT_BYTES", 16)
    large = packing_of(results(0))
    term = large.room()
    large.give_back(term)
    assert large.room() is not term


def test_memory_made_in_inference_mode_is_not_kept():
    """Outside of it, nobody may write to it."""
    packing = packing_of(results(0))
    with torch.inference_mode():
        packing.give_back(packing.room())
    loose(packing, results(0), 1, 0).packed()


def test_leaves_of_another_shape_are_refused():
    """A gradient of one element would else be added to all of a larger one."""
    packing = packing_of(results(0))
    wrong = results(0)
    wrong[2] = wrong[2][:1]
    with pytest.raises(ValueError, match=r"equal shapes: one has \(5,\) where another has \(1,\)"):
        packing.check(wrong)


def test_results_of_an_iteration_outlive_the_next():
    """All that is handed on stays as it is when the memory of its sums is written again, and shares none with it."""
    model, params, buffers = hf.functional(lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))

    def loss_fn(params, buffers, batch, key):
        output, buffers = model(params, buffers, batch)
        loss = output.square().mean() + params["0.weight"].sum()
        return loss, hf.Aux(buffers, len(batch), {"exact": 0.5, "size": output.abs().sum()})

    grad_fn, state = hf.value_and_grad(loss_fn, has_aux=True), hf.init_state(params, buffers=buffers)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        items = tuple(torch.randn(5, 3, generator=generator) for _ in range(3))
        mean = hf.microsteps(grad_fn, state, hf.MicroBatches(items, 0, 3))
        found.append((mean, hf.tree.digest(mean)))
        state = state.replace(buffers=mean.buffers)
    assert all(hf.tree.digest(mean) == digest for mean, digest in found)
    places = [
        {leaf.untyped_storage().data_ptr() for leaf in hf.tree.leaves(mean) if torch.is_tensor(leaf)}
        for mean, _ in found
    ]
    assert all(not one & other for one, other in itertools.pairwise(places))


def test_what_is_known_of_results_is_not_used_where_it_does_not_hold():
    """The same gradient function gives the same bits whatever it was called on before."""

    def loss_fn(params, buffers, batch, key):
        metrics = {"n": len(batch)} if len(batch) > 2 else {}
        return (batch @ params["w"]).square().mean(), hf.Aux(buffers, metrics=metrics)

    generator = torch.Generator().manual_seed(0)
    cases = []
    for size in (2, 3):
        for w in (torch.randn(4, 2, generator=generator), torch.randn(2, 4, generator=generator).t()):
            for buffers in ({}, {"mean": torch.ones(2)}, None):
                for dtype in (torch.float32, torch.float64):
                    items = tuple(torch.randn(size, 4, generator=generator).to(dtype) for _ in range(2))
                    cases.append((hf.init_state({"w": w.to(dtype)}, buffers=buffers), hf.MicroBatches(items, 0, 2)))
    fresh = [hf.microsteps(hf.value_and_grad(loss_fn, has_aux=True), *case) for case in cases]
    shared = hf.value_and_grad(loss_fn, has_aux=True)
    for _ in range(2):
        assert hf.tree.equal([hf.microsteps(shared, *case) for case in cases], fresh)
