"""Law 6: accumulating micro-batches is what one large batch would have been."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import tree

from ..jobs import Case, build
from ..strategies import examples


def train(**changes) -> hf.TrainState:
    job = build(Case(**changes))
    return hf.run(job.step, job.state, job.loader(), job.cfg).state


@settings(max_examples=examples(25))
@given(
    samples=st.integers(4, 13),
    small=st.integers(1, 4),
    steps=st.integers(1, 4),
    reduction=st.sampled_from(["tree", "fold"]),
    total=st.integers(1, 4),
)
def test_weighted_micro_batches_equal_their_union(samples, small, steps, reduction, total):
    """M micro-batches in one iteration give the update of their union, also where the last one is ragged."""
    common = {"order": "sequential", "unit": "epoch", "total": total, "checkpoint_every": None, "optimizer": "sgd"}
    parts = train(samples=samples, batch_size=small, micro_batches=steps, reduction=reduction, **common)
    union = train(samples=samples, batch_size=small * steps, **common)
    for path, leaf in tree.items(parts.params):
        torch.testing.assert_close(leaf, dict(tree.items(union.params))[path], rtol=1e-4, atol=1e-5)


@settings(max_examples=examples(25))
@given(
    batches=st.integers(1, 4),
    m=st.integers(2, 4),
    batch_size=st.integers(1, 3),
    epochs=st.integers(1, 3),
    optimizer=st.sampled_from(["adamw", "sgd", "torch"]),
    ema=st.booleans(),
    schedule=st.booleans(),
)
def test_every_m_equals_accumulation_bit_for_bit(batches, m, batch_size, epochs, optimizer, ema, schedule):
    """Epoch-unit ``every(M)`` equals iteration-unit accumulation where M divides the epoch, in fold order."""
    common = {
        "samples": batches * m * batch_size,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "ema": ema,
        "schedule": schedule,
        "reduction": "fold",
        "checkpoint_every": None,
    }
    by_epoch = train(unit="epoch", total=epochs, every=m, **common)
    by_iteration = train(unit="iteration", total=epochs * batches, accumulation=m, **common)
    assert tree.equal(by_epoch.params, by_iteration.params)
    assert tree.equal(by_epoch.averages, by_iteration.averages)
    assert by_epoch.cursor == by_iteration.cursor
    assert by_epoch.counters.micro_step == by_iteration.counters.micro_step
