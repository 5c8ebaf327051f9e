"""Two lives of the demo's classifier in small, of which one has a bit flipped while it runs; importable as jobs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import helios_fn as hf
from helios_fn.testing import Job

EXPERIMENT = """
sinks = ["jsonl"]
[run]
unit = "iteration"
total = 6
root = "ROOT"
progress = false
fingerprint_every = 1
validate_every = 3
checkpoint_every = 4
[data]
dataset = "forensic_images"
batch_size = 4
[valid]
dataset = "forensic_images"
batch_size = 5
[model]
name = "forensic_network"
[loss]
name = "cross_entropy"
[optimizer]
name = "adamw"
lr = 0.01
"""
BAD = 7
"""The iteration whose state has another bit."""


@hf.registry.DATASETS.register("forensic_images")
class Noisy(Dataset):
    """Small images with noise, as the demo's."""

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 20 * 16).reshape(20, 1, 4, 4)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + 0.05 * torch.randn(1, 4, 4), index % 2


@hf.registry.MODELS.register("forensic_network")
def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(32, 2)
    )


def job(micro_batches: int | None = None, total: int = 10, scale: float = 1.0) -> Job:
    """The job; it knows no root."""
    torch.set_num_threads(1)
    model, params, buffers = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, scale * batch[0])
        return nn.functional.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    optimizer = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(1e-2))
    cfg = hf.RunConfig(unit="iteration", total=total, micro_batches=micro_batches, progress=False)
    state = hf.init_state(params, optimizer, buffers=buffers)
    return Job(hf.make_step(loss_fn, optimizer), state, lambda: hf.Loader(Noisy(), batch_size=3), cfg)


def shared() -> Job:
    """The same with iterations that processes can share."""
    return job(micro_batches=4)


def other() -> Job:
    """Another program: its inputs are scaled by a little more than 1 from the third epoch on."""
    made = job()

    def step(state, batch):
        if state.counters.iteration >= BAD - 1:
            batch = (batch[0] * 1.000001, batch[1])
        return made.step(state, batch)

    return Job(step, made.state, made.loader, made.cfg)


def flipping(step):
    """The step with a flipped bit in the last weights of its result in iteration `BAD`, as broken memory makes it."""

    def flipped(state, batch):
        new = step(state, batch)
        if state.counters.iteration != BAD - 1:
            return new
        weight = new.params["5.weight"].clone()
        weight.view(torch.int32)[1, 2] ^= 1
        return new.replace(params={**new.params, "5.weight": weight})

    return flipped


def train(root: Path, made: Job, *, step=None, log=1, save=4, fingerprint: int | None = 1, loader=None) -> None:
    """Train the job in a root."""
    cfg = dataclasses.replace(
        made.cfg,
        root=root,
        log_every=log,
        checkpoint_every=save,
        fingerprint_every=fingerprint,
    )
    hf.run(step or made.step, made.state, loader or made.new_loader(), cfg, sinks=[hf.sinks.JsonLines()])
