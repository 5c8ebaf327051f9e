"""Faults that users plant in their own code, one small job each: the law that must name it, and words of the cause.

Processes of their own are where some faults live (what one keeps, its number, the seed of its hashes); jobs for these
are functions of this module, which each process imports.
"""

from __future__ import annotations

import os
import random as python_random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import helios_fn as hf
from helios_fn.testing import (
    Job,
    Stop,
    check_accumulation,
    check_counting,
    check_observation,
    check_order,
    check_resume,
    check_resume_processes,
    check_round_trip,
    check_step,
    check_validation,
    check_world,
)
from helios_fn.testing.machine import check_machine
from helios_fn.types import Delivery

from .user_parts import OPTIMIZER, Points, evaluate, job, loss_fn, start

PLAIN = hf.make_step(loss_fn, OPTIMIZER)
STOPS = [Stop(2)]


class Fault(NamedTuple):
    """A planted fault: what it is, the law that names it, words that the verdict must have, and the call that finds it.

    ``apart`` is for faults that show in real processes alone: those are found by the soak.
    """

    name: str
    law: str
    words: tuple[str, ...]
    check: Callable[[], object]
    apart: bool = False


FAULTS: list[Fault] = []


def planted(law: str, *words: str, apart: bool = False):
    """Enter a function that runs its law into the table; its name and docstring say what is planted."""

    def enter(check: Callable[[], object]) -> Callable[[], object]:
        FAULTS.append(Fault(check.__name__.replace("_", " "), law, words, check, apart))
        return check

    return enter


def resumed(found: Job) -> None:
    check_resume(found.step, found.state, found.loader, found.cfg, stops=STOPS, **found.keywords)


def accumulated(found: Job) -> None:
    check_accumulation(found.step, found.state, found.loader, found.cfg)


# In the step

GENERATOR = torch.Generator().manual_seed(1)


@planted("resume", "look at the step", "states part in iteration", "global 'GENERATOR'")
def noise_from_a_generator_of_its_own():
    def step(state, batch):
        noise = 0.1 * torch.randn(len(batch["y"]), generator=GENERATOR)
        return PLAIN(state, {**batch, "y": batch["y"] + noise})

    resumed(job(step))


@planted("step", "drew from global random state", "torch")
def noise_from_the_global_generator():
    def step(state, batch):
        return PLAIN(state, {**batch, "y": batch["y"] + 0.1 * torch.randn(len(batch["y"]))})

    check_step(step, start(), Points()[[0, 1]])


@planted("resume", "the step is not pure", "drew from global random state")
def noise_that_begins_after_the_steps_that_are_guarded():
    def step(state, batch):
        noise = torch.randn(()) if state.counters.iteration >= 3 else 0.0
        return PLAIN(state, {**batch, "y": batch["y"] + noise})

    resumed(job(step))


@planted("resume", "closure variable 'seen' of step", "look at the step")
def a_running_mean_in_a_closure():
    seen = []

    def step(state, batch):
        seen.append(batch["x"].mean(0))
        return PLAIN(state, {**batch, "x": batch["x"] - torch.stack(seen).mean(0)})

    resumed(job(step))


@planted("resume", "a default argument of step", "look at the step")
def a_mutable_default_argument():
    def step(state, batch, history=[0.0]):  # noqa: B006 - the fault
        history.append(history[-1] + 0.1)
        return PLAIN(state, {**batch, "y": batch["y"] + history[-1]})

    resumed(job(step))


class CountingNet(nn.Module):
    """Behaves differently the more often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x).squeeze(1) / self.calls


class OwnDropout(nn.Module):
    """Dropout from a generator that it owns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.source = torch.Generator().manual_seed(3)

    def forward(self, x):
        kept = torch.rand(x.shape, generator=self.source) > 0.5
        return self.linear(x * kept).squeeze(1)


def of_module(module) -> Job:
    model, params, buffers = hf.functional(module, seed=1)

    def module_loss(params, buffers, batch, key):
        found, buffers = model(params, buffers, batch["x"])
        return (found - batch["y"]).square().mean(), hf.Aux(buffers=buffers, weight=len(batch["y"]))

    return job(hf.make_step(module_loss, OPTIMIZER), state=hf.init_state(params, OPTIMIZER, buffers=buffers))


@planted("resume", "attribute 'calls' of CountingNet")
def a_module_that_counts_its_calls():
    resumed(of_module(CountingNet))


@planted("resume", "attribute 'source' of OwnDropout")
def dropout_without_a_key():
    resumed(of_module(OwnDropout))


@planted("step", "wrote to its input at buffers['mean']")
def batch_statistics_in_place():
    def step(state, batch):
        x = nn.functional.batch_norm(batch["x"], state.buffers["mean"], state.buffers["var"], training=True)
        return PLAIN(state, {**batch, "x": x})

    buffers = {"mean": torch.zeros(3), "var": torch.ones(3)}
    check_step(step, start(buffers=buffers), Points()[[0, 1, 2]])


@planted("resume", "torch refuses a kernel: put_", "a kernel is not deterministic")
def a_kernel_without_an_order_of_summation():
    """As a GPU's atomic additions: the order of terms is the scheduler's, here the operating system's randomness."""

    def step(state, batch):
        order = np.random.default_rng(int.from_bytes(os.urandom(4), "little")).permutation(400)
        terms = torch.linspace(1e-4, 1e4, 400)[torch.from_numpy(order)]
        total = torch.zeros(1)
        for term in terms:
            total.put_(torch.tensor([0]), total[0] + term * batch["x"].sum())
        return PLAIN(state, {**batch, "y": batch["y"] + 1e-6 * total})

    resumed(job(step))


class Term:
    """Something that knows no order but that of its address."""

    def __init__(self, weight: float) -> None:
        self.weight = weight


HISTORY = python_random.Random(2)


def terms_on_a_used_heap() -> list[Term]:
    """Objects at the addresses that a program gives them whose memory has been used for other things before."""
    used = [Term(0.0) for _ in range(600)]
    HISTORY.shuffle(used)
    while used:
        used.pop()
    return [Term(10.0 ** (each % 9)) for each in range(200)]


@planted("resume", "names id, which gives an address in memory")
def terms_in_the_order_of_their_addresses():
    def step(state, batch):
        terms = {id(term): term for term in terms_on_a_used_heap()}
        total = torch.zeros(())
        for address in sorted(terms):
            total = total + terms[address].weight * batch["x"].mean()
        return PLAIN(state, {**batch, "y": batch["y"] + 1e-9 * total})

    resumed(job(step))


# In optimisers and schedules


@planted("resume", "names time.time, which reads the clock", "['learning_rate']")
def the_time_in_a_schedule():
    def rate(count):
        return 0.05 + (time.time() % 1.0) * 1e-3

    optimizer = hf.optim.sgd(rate)
    resumed(job(hf.make_step(loss_fn, optimizer), optimizer=optimizer))


UPDATES = {"count": 0}


@planted("resume", "global 'UPDATES'", "look at the step")
def an_optimiser_with_a_global_counter():
    def update(grads, memory, params, *, weight=1.0):
        UPDATES["count"] += 1
        return hf.tree.map(lambda grad: grad / UPDATES["count"], grads), memory

    optimizer = hf.optim.chain(hf.optim.Transform(lambda params: (), update), OPTIMIZER)
    resumed(job(hf.make_step(loss_fn, optimizer), optimizer=optimizer))


@planted("resume", "names open, which reads what may change")
def a_schedule_that_reads_a_file():
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "reads")

        def rate(count):
            with open(notes, "a+") as file:
                file.write(".")
                return 0.05 + 0.001 * file.tell()

        optimizer = hf.optim.sgd(rate)
        resumed(job(hf.make_step(loss_fn, optimizer), optimizer=optimizer))


# Accumulation


def own_accumulation(combine: Callable) -> Job:
    grad_fn = hf.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        parts = [grad_fn(state.params, None, item, key) for item, key in
                 zip(batch.items, hf.micro_keys(state, batch), strict=True)]  # fmt: skip
        grads = combine([grads for _, grads in parts], [len(item["y"]) for item in batch.items])
        params, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        return state.replace(params=params, opt_state=opt_state, metrics={"loss": parts[0][0][0].detach()})

    return job(step, cfg={"accumulation_steps": 3})


@planted("accumulation", "a plain mean over micro-batches")
def a_plain_mean_over_ragged_micro_batches():
    accumulated(own_accumulation(lambda grads, sizes: hf.tree.map(lambda *g: sum(g) / len(g), *grads)))


@planted("accumulation", "their gradients are summed")
def a_sum_over_micro_batches():
    accumulated(own_accumulation(lambda grads, sizes: hf.tree.map(lambda *g: sum(g), *grads)))


@planted("accumulation", "only some of the micro-batches are used")
def the_gradients_of_the_last_micro_batch():
    accumulated(own_accumulation(lambda grads, sizes: grads[-1]))


@planted("accumulation", "hf.Aux(weight=len(y)")
def a_loss_that_does_not_say_its_weight():
    def unweighted(params, buffers, batch, key):
        return loss_fn(params, buffers, batch, key)[0]

    accumulated(job(loss=unweighted, cfg={"accumulation_steps": 3}))


# In the data

NOISE = python_random.Random(4)


def transformed(transform) -> Job:
    return job(loader=lambda: hf.Loader(Points(), 4, transform=transform))


@planted("resume", "dataset, transform", "global 'NOISE'", "['y']")
def python_random_of_its_own_in_a_transform():
    resumed(transformed(lambda sample, rng: {**sample, "y": sample["y"] + NOISE.random()}))


@planted("resume", "dataset, transform", "names os.urandom, which draws from the operating system")
def os_urandom_in_a_transform():
    resumed(transformed(lambda sample, rng: {**sample, "y": sample["y"] + os.urandom(1)[0] / 255}))


class CountsItsReads(Points):
    """Augments by how often it was read."""

    reads = 0

    def __getitem__(self, index):
        CountsItsReads.reads += 1
        sample = super().__getitem__(index)
        return {**sample, "y": sample["y"] + 0.01 * CountsItsReads.reads}


@planted("order", "is another one when read from batch", "class attribute 'reads' of CountsItsReads")
def augmentation_by_a_counter_in_the_dataset():
    check_order(lambda: hf.Loader(CountsItsReads(), 4), workers=(0,))


class Caches(Points):
    """Keeps the noise that it drew first, in each process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def __getitem__(self, index):
        if index not in self.cache:
            self.cache[index] = super().__getitem__(index)["x"] + torch.randn(3)
        return {"x": self.cache[index], "y": self.y[index]}


@planted("order", "is another one when read", "attribute 'cache' of Caches", "a cache")
def augmented_samples_that_each_worker_caches():
    check_order(lambda: hf.Loader(Caches(), 4), workers=(0,))


@planted("order", "visits sample", "more than once", "with replacement")
def a_sampler_with_replacement_by_mistake():
    def order(key, epoch, n):
        return hf.random.randint(key, (n,), high=n).tolist()

    check_order(hf.Loader(Points(), 4, order=order), workers=(0,))


class NeverTurnsOver(hf.Loader):
    """A source whose cursor is not normalised: it never says that an epoch is over."""

    def open(self, cursor, *, key, share):
        feed = super().open(cursor._replace(epoch=0, batch=cursor.batch % self.batches_per_epoch), key=key, share=share)
        position = cursor.batch

        class Feed:
            def __iter__(self):
                return self

            def __next__(self):
                nonlocal position
                found, position = next(feed), position + 1
                return Delivery(found.items, found.start, found.count, hf.Cursor(0, 0, position))

            def close(self):
                feed.close()

        return Feed()


@planted("counting", "by a plain count it is at epoch 1, batch 0")
def a_source_that_does_not_count_epochs():
    found = job(loader=lambda: NeverTurnsOver(Points(), 4))
    check_counting(found.step, found.state, found.loader, found.cfg)


# What ends a run, and what looks at it


@planted("counting", "a finished run", "should_stop", "names time.monotonic, which reads the clock")
def an_end_by_the_clock():
    deadline = []

    def should_stop(state):
        deadline[:] = deadline or [time.monotonic() + 0.01]
        return time.monotonic() > deadline[0] and state.counters.iteration % 2 == 0 and not stopped(state)

    def stopped(state):
        return time.monotonic() > deadline[0] + 1e9

    asked = []

    def once(state):
        asked.append(should_stop(state) or state.counters.iteration >= 4)
        return asked[-1] and not any(asked[:-1])

    found = job(should_stop=once)
    check_counting(found.step, found.state, found.loader, found.cfg, **found.keywords)


def trains_while_it_validates(state):
    state.params["w"].data.mul_(1.01)  # what `.data` hides from version counters
    return {"error": float(state.params["w"].sum())}


@planted("validation", "validate wrote to the state at params['w']")
def a_validation_that_trains():
    check_validation(trains_while_it_validates, start())


@planted("observation", "validation after each iteration", "writes into tensors of the state")
def a_validation_that_trains_in_a_run():
    found = job(validate=trains_while_it_validates, state=start, cfg={"validate_every": 3})
    check_observation(found.step, found.state, found.loader, found.cfg, **found.keywords)


class Scales(hf.Observer):
    """Divides what it shows, in place."""

    def on_iteration(self, state):
        state.params["w"].data.div_(1.5)


@planted("observation", "your own sinks and observers")
def an_observer_that_writes():
    found = job(observers=[Scales()], state=start)
    check_observation(found.step, found.state, found.loader, found.cfg, **found.keywords)


@planted("validation", "when the same 10 samples come in another order", "weight")
def a_validation_mean_over_ragged_batches():
    def unweighted(params, buffers, batch):
        return evaluate(params, buffers, batch)._replace(weight=1)

    check_validation(hf.Validator(unweighted, hf.Loader(Points(), 4, shuffle=False)), start())


@planted("validation", "when it is called again with the same state", "closure variable 'best' of validate")
def a_validation_that_remembers():
    best = [1e9]

    def validate(state):
        best[0] = best[0] * 0.9
        return {"error": best[0]}

    check_validation(validate, start())


# In a state of one's own


class Window:
    """A container of the user's own that forgets its length when it is put together again."""

    def __init__(self, values, length=8):
        self.values, self.length = values, length


@planted("round_trip", "has lost state.extra['window'].length")
def a_container_that_forgets():
    import optree

    if not hasattr(Window, "registered"):
        optree.register_pytree_node(
            Window,
            lambda node: ((node.values,), None, ("values",)),
            lambda _, parts: Window(*parts),
            namespace=hf.tree.NAMESPACE,
        )
        Window.registered = True
    check_round_trip({"window": Window(torch.zeros(3), length=5)})


# In a process

FIRST = []


def normalised_by_the_first_batch() -> Job:
    def step(state, batch):
        if not FIRST:
            FIRST.append(batch["x"].mean(0))
        return PLAIN(state, {**batch, "x": batch["x"] - FIRST[0]})

    return job(step)


def noise_by_process() -> Job:
    def step(state, batch):
        return PLAIN(state, {**batch, "y": batch["y"] + os.getpid() % 1000 / 1000})

    return job(step)


def set_as_order() -> Job:
    def order(key, epoch, n):
        return [int(name) for name in {str(index) for index in range(n)}]

    return job(loader=lambda: hf.Loader(Points(), 4, order=order))


def hash_as_feature() -> Job:
    def step(state, batch):
        return PLAIN(state, {**batch, "y": batch["y"] + hash("name") % 100 / 100})

    return job(step)


def processes(name: str) -> None:
    torch.set_num_threads(1)
    check_resume_processes(f"{__name__}:{name}", stops=[Stop(2, "signal")])


@planted("resume_processes", "global 'FIRST'", "normaliser made from the first batch that a process")
def a_normaliser_of_the_first_batch_seen():
    FIRST.clear()
    processes("normalised_by_the_first_batch")


@planted("resume_processes", "names os.getpid, which depends on the process")
def the_process_number_in_the_step():
    processes("noise_by_process")


@planted(
    "resume_processes", "makes a set, whose order may be another in each process", "The data differ first", apart=True
)
def a_set_as_the_order_of_the_data():
    processes("set_as_order")


@planted("resume_processes", "names hash", apart=True)
def a_hash_of_a_name_as_a_feature():
    processes("hash_as_feature")


# On other batches than the first


@planted("step", "the step fails on a batch of", "its last one has fewer samples")
def a_batch_size_written_into_the_step():
    def folded(params, buffers, batch, key):
        return loss_fn(params, buffers, {**batch, "x": batch["x"].reshape(2, 2, 3).flatten(0, 1)}, key)

    check_step(hf.make_step(folded, OPTIMIZER), start(), Points()[[0, 1, 2, 3]], examples=20)


@planted("step", "metrics['loss'] is", "a batch of 2 samples")
def a_division_by_what_may_be_zero():
    def spread(params, buffers, batch, key):
        loss, aux = loss_fn(params, buffers, batch, key)
        return loss / batch["y"].diff().abs().min(), aux

    check_step(hf.make_step(spread, OPTIMIZER), start(), Points()[[0, 1, 2, 3]], examples=300)


# In other worlds


def shared(step) -> Job:
    return job(step, cfg={"micro_batches": 3, "total": 4})


def moved(state, amount: float):
    return state.replace(params={**state.params, "b": state.params["b"] + amount})


def noise_by_rank() -> Job:
    def step(state, batch):
        rank = int(os.environ.get("RANK", "0"))
        return moved(PLAIN(state, batch), float(torch.randn((), generator=torch.Generator().manual_seed(rank))))

    return shared(step)


def rate_by_world() -> Job:
    def step(state, batch):
        return moved(PLAIN(state, batch), 0.01 * int(os.environ.get("WORLD_SIZE", "1")))

    return shared(step)


def share_in_a_metric() -> Job:
    def step(state, batch):
        new = PLAIN(state, batch)
        return new.replace(metrics={**new.metrics, "micro_batches": torch.tensor(float(len(batch.items)))})

    return shared(step)


def warm_up_after_a_restart() -> Job:
    begun = []

    def step(state, batch):
        begun.append(state.counters.iteration)
        late = begun[0] > 0 and len(begun) == 1 and os.environ.get("WORLD_SIZE", "1") != "1"
        return moved(PLAIN(state, batch), 0.01 * late)

    return shared(step)


@planted("world", "2 processes: the processes hold different states", "names os.environ")
def noise_drawn_by_the_rank():
    check_world(f"{__name__}:noise_by_rank", processes=(1, 2))


@planted("world", "a run of 2 processes differs from one of 1 process", "names os.environ", apart=True)
def a_rate_by_the_number_of_processes():
    check_world(f"{__name__}:rate_by_world", processes=(1, 2))


@planted("world", "then 2 processes, differs from one of 1 process", "names os.environ", apart=True)
def a_warm_up_after_each_restart_of_several_processes():
    check_world(f"{__name__}:warm_up_after_a_restart", processes=(1, 2), examples=30)


@planted("machine", "the world was changed from 1 to 2 processes", "metrics['micro_batches']", apart=True)
def a_metric_of_the_share_of_one_process():
    check_machine(f"{__name__}:share_in_a_metric", worlds=(1, 2), examples=20)
