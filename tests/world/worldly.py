"""Jobs for `check_world` and the state machine: some that keep the law, and some that break it."""

from __future__ import annotations

import dataclasses
import os

import torch

import helios_fn as hf
from helios_fn.testing import Job

from ..jobs import Case, build

CASE = Case(
    samples=14,
    batch_size=3,
    total=5,
    micro_batches=4,
    dropout=True,
    batch_norm=True,
    validate_every=hf.Every(2, "iteration"),
)


def sound() -> Job:
    return build(CASE)


def without_micro_batches() -> Job:
    return build(dataclasses.replace(CASE, micro_batches=None))


def own_mean() -> Job:
    """Its step takes the mean over the micro-batches of its own process."""
    job = build(CASE)

    def step(state, batch):
        lonely = batch._replace(start=0, count=len(batch.items))
        grads = {name: sum(x.sum() for x, _ in lonely.items) * 1e-3 + 0 * leaf for name, leaf in state.params.items()}
        params = {name: leaf - grads[name] for name, leaf in state.params.items()}
        return state.replace(params=params)

    return dataclasses.replace(job, step=step)


def by_processes() -> Job:
    """Its rate is scaled by the number of processes, as guides for other libraries advise."""
    return build(dataclasses.replace(CASE, seed=int(os.environ["WORLD_SIZE"])))


def only_alone() -> Job:
    if int(os.environ["WORLD_SIZE"]) > 1:
        raise OSError("the data are on another disk")
    return build(CASE)


def broken() -> Job:
    raise OSError("the data are on another disk")


SMALL = dataclasses.replace(CASE, total=4, micro_batches=3, dropout=False, batch_norm=False, validate_every=None)


def small() -> Job:
    return build(SMALL)


def counts_its_share() -> Job:
    """A metric that is 0 alone and on rank 0: where the share of this process begins."""
    job = build(SMALL)

    def step(state, batch):
        new = job.step(state, batch)
        return new.replace(metrics={**new.metrics, "begin": torch.tensor(float(batch.start))})

    return dataclasses.replace(job, step=step)


def warms_up_again() -> Job:
    """Several processes that did not begin the run themselves take smaller steps at first."""
    job, begun = build(SMALL), []

    def step(state, batch):
        begun.append(state.counters.iteration)
        new = job.step(state, batch)
        if begun[0] == 0 or len(begun) > 1 or os.environ.get("WORLD_SIZE", "1") == "1":
            return new
        return new.replace(params=hf.tree.map(lambda old, leaf: (old + leaf) / 2, state.params, new.params))

    return dataclasses.replace(job, step=step)


def fails_when_shared() -> Job:
    """Its step wants all micro-batches of an iteration."""
    job = build(SMALL)

    def step(state, batch):
        if len(batch.items) < batch.count:
            raise ValueError("where are the others?")
        return job.step(state, batch)

    return dataclasses.replace(job, step=step)
