"""Correct jobs of users, of every sort that might be taken for a faulty one: no law may accuse them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import nn

import helios_fn as hf
from helios_fn.testing import Job

from ..jobs import Case, build
from .user_parts import OPTIMIZER, Points, evaluate, job, loss_fn, predicted, start

JOBS: dict[str, Callable[[], Job]] = {
    "batch norm": lambda: build(Case(batch_norm=True, samples=12)),
    "dropout by key": lambda: build(Case(dropout=True)),
    "accumulation over ragged batches": lambda: build(Case(accumulation=3)),
    "every two": lambda: build(Case(every=2, unit="epoch", total=2)),
    "ema and a schedule": lambda: build(Case(ema=True, schedule=True)),
    "swa": lambda: build(Case(swa=True)),
    "bf16": lambda: build(Case(precision="bf16")),
    "fp16 with a loss scale": lambda: build(Case(precision="fp16")),
    "frozen layers": lambda: build(Case(freeze=True, batch_norm=True, samples=12)),
    "phases": lambda: build(Case(source="phases", unit="epoch", total=3)),
    "a stream": lambda: build(Case(source="stream", augment="torch")),
    "a torch DataLoader": lambda: build(Case(source="dataloader", augment="random")),
    "an order of its own": lambda: build(Case(order="custom", augment="numpy")),
    "a generator handed over": lambda: build(Case(augment="generator", drop_last=True)),
    "an optimiser of torch": lambda: build(Case(optimizer="torch", micro_batches=2, unit="epoch", total=2)),
    "a step by hand with noise": lambda: build(Case(handwritten=True, ema=True, accumulation=2)),
    "early stop": lambda: build(Case(validate_every=hf.Every(1, "iteration"), early_stop=2, total=9)),
    "validation that draws": lambda: build(Case(validate_every=hf.Every(2, "iteration"), own_validation=True)),
}


def correct(make: Callable[[], Job]) -> Callable[[], Job]:
    """Enter a function that makes a job into the table."""
    JOBS[make.__name__.replace("_", " ")] = make
    return make


@correct
def a_game_of_two_optimisers() -> Job:
    """As a GAN: two updates in a step, noise from keys, a running score in ``extra``."""
    optimizers = {"maker": hf.optim.adam(1e-2), "judge": hf.optim.sgd(1e-2)}

    def made(params, key, like):
        return predicted(params, hf.random.normal(key, (len(like), 3)))

    def judge_loss(params, batch, key, other):
        return (params["v"] * (batch["y"].mean() - made(other, key, batch["y"]).mean()) - 1).square()

    def maker_loss(params, batch, key, other):
        return (other["v"] * made(params, key, batch["y"])).square().mean()

    def step(state, batch):
        params, opt_state, losses = dict(state.params), dict(state.opt_state), {}
        for name, other, loss in (("judge", "maker", judge_loss), ("maker", "judge", maker_loss)):
            value, grads = hf.value_and_grad(loss)(params[name], batch, hf.step_key(state, name), params[other])
            params[name], opt_state[name] = optimizers[name].update(grads, opt_state[name], params[name])
            losses[f"{name}_loss"] = value
        extra = {"score": 0.9 * state.extra["score"] + losses["judge_loss"], "games": state.extra["games"] + 1}
        return state.replace(params=params, opt_state=opt_state, metrics=losses, extra=extra)

    params = {"maker": {"w": torch.ones(3), "b": torch.zeros(())}, "judge": {"v": torch.ones(())}}
    memory = {name: optimizers[name].init(params[name]) for name in params}
    return job(step, state=hf.init_state(params, opt_state=memory, extra={"score": torch.zeros(()), "games": 0}))


@correct
def three_runs_as_one() -> Job:
    optimizer = hf.optim.tunable(hf.optim.adam, lr=1e-2)
    states = [start(optimizer, seed=seed) for seed in range(3)]
    return job(hf.ensemble(hf.make_step(loss_fn, optimizer)), state=hf.stack(states))


@correct
def a_learning_rate_in_the_state() -> Job:
    optimizer = hf.optim.tunable(hf.optim.sgd, lr=0.05)
    return job(hf.make_step(loss_fn, optimizer), state=start(optimizer), cfg={"accumulation_steps": 2})


@functools.lru_cache
def basis(features: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, features)


TIMES: dict[str, float] = {}


@correct
def what_is_remembered_does_not_matter() -> Job:
    """A cache of a pure function, a clock that only measures, a set that only counts, an id that only names."""
    plain = hf.make_step(loss_fn, OPTIMIZER)

    def step(state, batch):
        begun = time.perf_counter()
        kinds = len(set(batch["y"].sign().tolist()))
        new = plain(state, {**batch, "x": batch["x"] + basis(3)})
        TIMES[str(id(batch))] = time.perf_counter() - begun
        return new.replace(metrics={**new.metrics, "kinds": torch.tensor(float(kinds))})

    return job(step)


class Decoded(Points):
    """Keeps what it has decoded, which is the same whenever it is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, dict[str, torch.Tensor]] = {}

    def __getitem__(self, index):
        if index not in self.kept:
            self.kept[index] = super().__getitem__(index)
        sample = self.kept[index]
        return {**sample, "x": sample["x"] + 0.1 * torch.randn(3)}


@correct
def a_dataset_with_a_cache_and_noise() -> Job:
    return job(loader=lambda: hf.Loader(Decoded(), 4))


@correct
def a_step_that_learns_to_learn() -> Job:
    """The outer gradient goes through an inner step."""

    def outer(params, buffers, batch, key):
        def inner(w):
            return (predicted({**params, "w": w}, batch["x"]) - batch["y"]).square().mean()

        moved = params["w"] - 0.01 * torch.func.grad(inner)(params["w"])
        return inner(moved), hf.Aux(weight=len(batch["y"]))

    return job(loss=outer)


@correct
def an_own_mean_with_weights() -> Job:
    """Accumulation by hand, right."""
    grad_fn = hf.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        mean = hf.microsteps(grad_fn, state, batch)
        params, opt_state = OPTIMIZER.update(mean.grads, state.opt_state, state.params)
        return state.replace(params=params, opt_state=opt_state, metrics={"loss": mean.loss})

    return job(step, cfg={"accumulation_steps": 3})


class Noisy(nn.Module):
    """Draws from the global generators, as ordinary modules do; `make_step` opens a scope for them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        noise = torch.randn_like(x) if self.training else 0.0
        return self.linear(x + 0.1 * noise).squeeze(1)


@correct
def a_module_with_noise_and_a_validator() -> Job:
    model, params, buffers = hf.functional(Noisy, seed=2)

    def noisy_loss(params, buffers, batch, key):
        found, buffers = model(params, buffers, batch["x"])
        return (found - batch["y"]).abs().mean(), hf.Aux(buffers=buffers, weight=len(batch["y"]))

    def noisy_evaluate(params, buffers, batch):
        found, _ = model.eval(params, buffers, batch["x"])
        return hf.Aux(metrics={"error": (found - batch["y"]).abs().mean()}, weight=len(batch["y"]))

    return job(
        hf.make_step(noisy_loss, OPTIMIZER),
        state=hf.init_state(params, OPTIMIZER, buffers=buffers),
        validate=hf.Validator(noisy_evaluate, hf.Loader(Points(7), 3, shuffle=False)),
        cfg={"validate_every": 2},
    )


@correct
def an_end_by_the_state() -> Job:
    return job(
        validate=hf.Validator(evaluate, hf.Loader(Points(7), 3, shuffle=False)),
        should_stop=lambda state: "good enough" if float(state.metrics["loss"]) < 1.0 else False,
        cfg={"validate_every": 2, "total": 12},
    )


@correct
def one_job_for_several_processes() -> Job:
    return job(cfg={"micro_batches": 3})


@correct
def noise_by_key_in_several_processes() -> Job:
    """Each micro-batch has its own key, whoever has the micro-batch."""

    def noisy(params, buffers, batch, key):
        return loss_fn(params, buffers, {**batch, "x": batch["x"] + 0.1 * torch.randn_like(batch["x"])}, key)

    return job(loss=noisy, cfg={"micro_batches": 2, "total": 5})


SHARED = {
    make.__name__.replace("_", " "): f"{__name__}:{make.__name__}"
    for make in (one_job_for_several_processes, noise_by_key_in_several_processes)
}
"""Where other processes find the jobs that they can share."""
