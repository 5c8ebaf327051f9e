"""What the planted faults and the correct jobs of users are made of: a small regression, right in every part."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

import helios_fn as hf
from helios_fn.testing import Job

OPTIMIZER = hf.optim.sgd(0.05, momentum=0.9)
FEATURES = 3


class Points(Dataset):
    """Ten points on a plane."""

    def __init__(self, samples: int = 10) -> None:
        numbers = np.random.default_rng(5)
        self.x = torch.tensor(numbers.standard_normal((samples, FEATURES)), dtype=torch.float32)
        self.y = 2 * self.x.sum(1) + 1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def predicted(params, x):
    return x @ params["w"] + params["b"]


def loss_fn(params, buffers, batch, key):
    loss = (predicted(params, batch["x"]) - batch["y"]).square().mean()
    return loss, hf.Aux(weight=len(batch["y"]))


def evaluate(params, buffers, batch):
    error = (predicted(params, batch["x"]) - batch["y"]).abs().mean()
    return hf.Aux(metrics={"error": error}, weight=len(batch["y"]))


def start(optimizer=OPTIMIZER, **more):
    return hf.init_state({"w": torch.ones(FEATURES), "b": torch.zeros(())}, optimizer, **more)


def config(**changes) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 6, "log_every": 1, "progress": False, **changes})


def job(step=None, *, loss=loss_fn, optimizer=OPTIMIZER, loader=None, state=None, cfg=None, **keywords) -> Job:
    """A job with some parts replaced."""
    return Job(
        hf.make_step(loss, optimizer) if step is None else step,
        start(optimizer) if state is None else state,
        (lambda: hf.Loader(Points(), 4)) if loader is None else loader,
        config(**(cfg or {})),
        keywords,
    )
