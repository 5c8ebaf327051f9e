"""Small training jobs with every feature that could break a law, built from a `Case`.

A job trains in milliseconds, and each of its parts can be switched on: random augmentation from any
generator, dropout, batch statistics, schedules, accumulation, averages, validation, early stop.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random as python_random
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import helios_fn as hf
from helios_fn.testing import Job

FEATURES, CLASSES = 3, 2
DEVICE = os.environ.get("HELIOS_FN_TEST_DEVICE") or None
"""Where all jobs train, such as "cuda": the laws hold wherever the kernels are deterministic."""
CONFUSION = hf.metrics.confusion(CLASSES)
Augment = Literal["none", "torch", "random", "numpy", "generator"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One point in the space of configurations that the laws quantify over."""

    samples: int = 11
    batch_size: int = 3
    drop_last: bool = False
    order: Literal["shuffled", "sequential", "custom"] = "shuffled"
    source: Literal["loader", "dataloader", "stream", "phases"] = "loader"
    augment: Augment = "none"
    unit: Literal["iteration", "epoch"] = "iteration"
    total: int = 6
    accumulation: int = 1
    micro_batches: int | None = None
    every: int = 1
    reduction: Literal["tree", "fold"] = "tree"
    optimizer: Literal["adamw", "sgd", "torch"] = "adamw"
    handwritten: bool = False
    donate: bool | Literal["auto"] = "auto"
    compile: Literal["grad", "whole", "step"] | None = None
    backend: str = "eager"
    dropout: bool = False
    batch_norm: bool = False
    one_class_counts: bool = False
    schedule: bool = False
    ema: bool = False
    swa: bool = False
    precision: Literal["bf16", "fp16"] | None = None
    freeze: bool = False
    log_every: int = 1
    fingerprint_every: int | None = None
    validate_every: hf.Every | None = None
    own_validation: bool = False
    sanity_batches: int = 0
    early_stop: int | None = None
    checkpoint_every: hf.Every | None = dataclasses.field(default_factory=lambda: hf.Every(2, "iteration"))
    retention: hf.Retention | None = None
    async_save: bool = True
    seed: int = 6691


class Points(Dataset):
    """Points of two classes, each moved a little by a generator that the case chooses."""

    def __init__(self, samples: int, augment: Augment) -> None:
        numbers = np.random.default_rng(7)
        self.x = torch.tensor(numbers.standard_normal((samples, FEATURES)), dtype=torch.float32)
        self.y = torch.tensor(numbers.integers(0, CLASSES, samples))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + self.noise(), self.y[index]

    def noise(self) -> torch.Tensor | float:
        if self.augment == "torch":
            return 0.1 * torch.randn(FEATURES)
        if self.augment == "random":
            return 0.1 * python_random.gauss(0.0, 1.0)
        if self.augment == "numpy":
            return float(0.1 * np.random.standard_normal())
        return 0.0


class KeyedPoints(Points):
    """The same points, moved by the generator that the loader hands over."""

    def keyed_item(self, index: int, rng: np.random.Generator, /) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + float(0.1 * rng.standard_normal()), self.y[index]


class Net(nn.Module):
    """A small classifier with the parts that make exactness hard."""

    def __init__(self, dropout: bool, batch_norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 4)
        self.norm = nn.BatchNorm1d(4) if batch_norm else nn.Identity()
        self.drop = nn.Dropout(0.4) if dropout else nn.Identity()
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def build(case: Case, workers: int = 0) -> Job:
    """The job of a case. ``workers`` is not part of the case: it must not matter."""
    draws = {"draws": "keyed"} if case.compile else {}
    model, params, buffers = hf.functional(lambda: Net(case.dropout, case.batch_norm), seed=case.seed, **draws)
    if DEVICE is not None:
        params, buffers = hf.tree.map(lambda leaf: leaf.to(DEVICE), (params, buffers))
    if case.freeze:
        model, params, buffers = hf.freeze(model, params, buffers, "first.*")
    optimizer = make_optimizer(case)
    average = make_average(case)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x, key=key if case.compile else None)
        loss = torch.nn.functional.cross_entropy(logits, y)
        weight = (y == 1).sum() if case.one_class_counts else len(y)  # of many a batch nothing counts
        return loss, hf.Aux(
            buffers=buffers, weight=weight, metrics={"accuracy": (logits.argmax(1) == y).float().mean()}
        )

    def evaluate(params, buffers, batch):
        x, y = batch
        logits, _ = model.eval(params, buffers, x)
        noise = 0.1 * torch.rand(())  # validation may draw; training must not notice
        measured = {"of": CONFUSION(logits, y), "spread": hf.metrics.mean()(logits**2 + noise)}
        loss = torch.nn.functional.cross_entropy(logits, y) + noise
        return hf.Aux(metrics={"loss": loss, **measured}, weight=len(y))

    if case.handwritten:
        step = handwritten_step(case, loss_fn, optimizer)
        step = hf.compile(step, backend=case.backend) if case.compile == "step" else step
        extra = {"shadow": hf.tree.map(torch.clone, params), "steps": 0} if case.ema else {"steps": 0}
    else:
        options = {"backend": case.backend} if case.compile else None
        step = hf.make_step(
            loss_fn,
            optimizer,
            average=average,
            precision=case.precision,
            compile=case.compile,
            compile_options=options,
        )
        extra = None
    state = hf.init_state(params, optimizer, buffers=buffers, seed=case.seed, average=average, extra=extra)
    keywords = {}
    if case.validate_every is not None:
        held_out = hf.Loader(Points(5, "torch"), batch_size=2, shuffle=False)
        validator = hf.Validator(evaluate, held_out, device=DEVICE)
        keywords["validate"] = own_validation(validator) if case.own_validation else validator
    return Job(step, state, lambda: make_source(case, workers), make_config(case), keywords)


def own_validation(validator):
    """A validation function of the user's own, which draws from a global generator as ordinary code does."""
    return lambda state: {**validator(state), "draw": torch.rand(())}


def make_optimizer(case: Case) -> hf.optim.Optimizer:
    rate = hf.schedules.warmup_cosine(0.05, warmup_steps=2, total_steps=20) if case.schedule else 0.05
    if case.optimizer == "torch":
        inner = hf.optim.from_torch(torch.optim.RMSprop, lr=rate, momentum=0.5)
    elif case.optimizer == "sgd":
        inner = hf.optim.sgd(rate, momentum=0.9)
    else:
        inner = hf.optim.adamw(rate)
    made = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), inner)
    if case.precision == "fp16":
        # From here it overflows, backs off, grows, and overflows again.
        made = hf.optim.loss_scaled(made, init_scale=2.0**18, growth_interval=1)
    return hf.optim.every(case.every, made) if case.every > 1 else made


def make_average(case: Case):
    if case.handwritten:
        return None
    return hf.swa(1, every=2) if case.swa else hf.ema(0.9) if case.ema else None


def make_grad_fn(case: Case, loss_fn):
    """The gradient function of a step, as a function of its state."""
    if case.precision == "fp16":
        scaled = hf.scaled_grad(hf.autocast(loss_fn, torch.float16))
        return lambda state: functools.partial(scaled, scale=hf.optim.loss_scale(state.opt_state).scale)
    grad_fn = hf.value_and_grad(loss_fn if case.precision is None else hf.autocast(loss_fn), has_aux=True)
    return lambda state: grad_fn


def handwritten_step(case: Case, loss_fn, optimizer):
    """A step that uses none of `make_step`: its own gradients, its own average in ``extra``, its own noise."""
    grad_fn = make_grad_fn(case, loss_fn)

    def step(state, batch):
        mean = hf.microsteps(grad_fn(state), state, batch)
        mode = hf.random.keyed if case.compile else hf.random.scope
        with mode(hf.step_key(state, "noise")):
            grads = hf.tree.map(lambda g: g + 1e-3 * torch.randn_like(g), mean.grads)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, weight=mean.weight)
        extra = {**state.extra, "steps": state.extra["steps"] + 1}
        if "shadow" in extra:
            extra["shadow"] = hf.tree.map(lambda s, p: 0.9 * s + 0.1 * p, state.extra["shadow"], params)
        return state.replace(
            params=params, opt_state=opt_state, buffers=mean.buffers, extra=extra, metrics={"loss": mean.loss}
        )

    return hf.guard_finite(step)


def reversed_order(key, epoch, n):
    """A custom order: backwards, starting one further in each epoch."""
    return [(n - 1 - i + epoch) % n for i in range(n)]


def make_source(case: Case, workers: int = 0):
    kind = KeyedPoints if case.augment == "generator" else Points
    dataset = kind(case.samples, case.augment)
    if case.source == "stream":
        return hf.Stream(open_points(dataset), batch_size=case.batch_size)
    if case.source == "dataloader":
        return DataLoader(
            dataset,
            batch_size=case.batch_size,
            shuffle=case.order == "shuffled",
            drop_last=case.drop_last,
            num_workers=workers,
        )
    order = {"shuffled": {"shuffle": True}, "sequential": {"shuffle": False}, "custom": {"order": reversed_order}}
    loader = hf.Loader(
        dataset, batch_size=case.batch_size, drop_last=case.drop_last, workers=workers, **order[case.order]
    )
    if case.source == "phases":
        second = hf.Loader(dataset, batch_size=case.batch_size, drop_last=case.drop_last, workers=workers)
        return hf.Phases([loader, second], advance=[lambda state: state.counters.iteration >= 2])
    return loader


def open_points(dataset):
    """A stream over the points whose position is the next index; its noise comes from its key."""

    def open_stream(position, key):
        for index in range(position or 0, len(dataset)):
            with hf.random.scope(hf.random.fold_in(key, index)):
                sample = dataset[index]
            yield sample, index + 1

    return open_stream


def make_config(case: Case) -> hf.RunConfig:
    stop = None if case.early_stop is None else hf.EarlyStop("loss", cycles=case.early_stop)
    return hf.RunConfig(
        unit=case.unit,
        total=case.total,
        accumulation_steps=case.accumulation,
        micro_batches=case.micro_batches,
        reduction=case.reduction,
        log_every=hf.Every(case.log_every, "iteration"),
        fingerprint_every=None if case.fingerprint_every is None else hf.Every(case.fingerprint_every, "iteration"),
        validate_every=case.validate_every,
        sanity_batches=case.sanity_batches if case.validate_every is not None else 0,
        checkpoint_every=case.checkpoint_every,
        retention=None if case.checkpoint_every is None else case.retention,
        async_save=case.async_save,
        early_stop=stop,
        root=None if case.checkpoint_every is None else "unused",
        progress=False,
        donate=case.donate,
        device=DEVICE,
    )
