"""Jobs for `check_world`: one that keeps the law and two that break it."""

from __future__ import annotations

import dataclasses
import os

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
