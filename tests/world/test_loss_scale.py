"""Several processes and one loss scale: an overflow on one of them is an overflow on all."""

from __future__ import annotations

import helios_fn as hf
from helios_fn import tree

from ..jobs import Case, build

CASE = Case(precision="fp16", micro_batches=2, total=8, checkpoint_every=None, batch_norm=True, swa=True, freeze=True)


def trained():
    """The scale after each iteration, how many updates were skipped, whether one was bad, and the digest of the end."""
    world = hf.distributed.connect()
    job = build(CASE)
    scales = []
    for state in hf.iterate(job.step, job.state, job.loader(), job.cfg):
        scales.append(float(state.metrics["loss_scale"]))
    end = (state.params, state.buffers, state.opt_state, state.averages)
    skipped = int(hf.optim.loss_scale(state.opt_state).skipped)
    return scales, skipped, int(state.first_bad), tree.digest(end), world.size


def test_an_overflow_is_decided_on_the_gradients_of_all_processes():
    """Two processes go through the same scales as one and end in the same bits."""
    alone = trained()
    scales, skipped, first_bad, _, processes = alone
    assert len(set(scales)) > 1
    assert 0 < skipped < len(scales)
    assert (first_bad, processes) == (-1, 1)
    assert hf.launch(trained, processes=2, timeout=120) == [(*alone[:-1], 2)] * 2
