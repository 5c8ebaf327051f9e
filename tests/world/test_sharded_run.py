"""A run whose state is sharded is a run: it stops, goes on, validates and keeps its checkpoints."""

from __future__ import annotations

from typing import Any

import torch

import helios_fn as hf

from . import jobs
from .test_sharded import close

SAMPLES = 23  # the last batch is shorter, but a batch norm needs more than one
STOP, TOTAL = 4, 7


def digests(root: str, total: int, sharded: bool = True, **options: Any) -> tuple[Any, ...]:
    """Train up to ``total``; whole params, what validation found, the reason, and whose progress it was."""
    world = hf.distributed.connect()
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    model, params, buffers = hf.functional(jobs.Net)
    if sharded:
        params = hf.distributed.shard(params, jobs.mesh())

    def loss_fn(params, buffers, batch, key):
        output, buffers = model(hf.distributed.gathered(params), buffers, batch[0])
        return torch.nn.functional.cross_entropy(output, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    def eval_fn(params, buffers, batch):
        output, _ = model.eval(hf.distributed.gathered(params), buffers, batch[0])
        loss = torch.nn.functional.cross_entropy(output, batch[1])
        return hf.Aux(metrics={"loss": loss}, weight=len(batch[1]))

    optimizer = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(0.05))
    settings = {"checkpoint_every": 3, "validate_every": 2, "retention": hf.Retention(last=2)} | options
    cfg = hf.RunConfig(unit="iteration", total=total, micro_batches=4, root=root, progress=False, **settings)
    result = hf.run(
        hf.make_step(loss_fn, optimizer),
        lambda: hf.init_state(params, optimizer, buffers=buffers),
        hf.Loader(data, 3, shuffle=True),
        cfg,
        validate=hf.Validator(eval_fn, hf.Loader(data, 5)),
    )
    whole = {name: leaf.detach().clone() for name, leaf in hf.distributed.gathered(result.state.params).items()}
    return whole, result.state.validation.metrics, result.reason.name, world.rank


def refused(root: str) -> str:
    try:
        digests(root, TOTAL, checkpoint_every_seconds=5)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def test_a_resumed_sharded_run_ends_in_the_bits_of_one_that_never_stopped(two, tmp_path):
    """State and validation, on every process; two checkpoints stay."""
    uninterrupted = two.run(digests, str(tmp_path / "whole"), TOTAL)
    two.run(digests, str(tmp_path / "parts"), STOP)
    resumed = two.run(digests, str(tmp_path / "parts"), TOTAL)
    assert hf.tree.equal([each[:3] for each in resumed], [each[:3] for each in uninterrupted])
    assert hf.tree.equal(resumed[0][:3], resumed[1][:3])
    assert len(list((tmp_path / "parts" / "checkpoints").iterdir())) == 2


def test_a_sharded_run_goes_on_with_another_number_of_processes(four, two, tmp_path):
    """To rounding, as the sum over processes has another order; also on one process, with whole params."""
    straight = digests(str(tmp_path / "alone"), TOTAL, sharded=False)
    four.run(digests, str(tmp_path / "run"), STOP - 1)
    two.run(digests, str(tmp_path / "run"), STOP + 1)
    params, metrics, reason, _ = digests(str(tmp_path / "run"), TOTAL, sharded=False)
    assert close(params, straight[0])
    assert close(metrics, straight[1])
    assert reason == "TOTAL"


def test_a_sharded_run_does_not_save_by_the_clock(two, tmp_path):
    """Clocks differ, and all processes have to save together."""
    for message in two.run(refused, str(tmp_path)):
        assert "set checkpoint_every" in message
