"""What the processes of the sharded tests do."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

import helios_fn as hf
from helios_fn import step as step_module
from helios_fn.nn.reduction import combine
from helios_fn.types import MicroBatches


def reduce_over_gloo(partial):
    """The sum over the processes of the default group."""
    everybody = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, partial.blocks)
    return combine(everybody, partial.terms, partial.reduction)


def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


class Net(torch.nn.Module):
    def __init__(self, width: int = 6, p: float = 0.3) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, width, bias=False)
        self.norm = torch.nn.BatchNorm1d(width)
        self.second = torch.nn.Linear(width, 2)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.dropout = torch.nn.Dropout(p)

    def forward(self, x):
        return self.scale * self.second(self.dropout(torch.tanh(self.norm(self.first(x)))))


class Training(NamedTuple):
    """One training of a small network, whoever does it."""

    optimizer: Any
    micro_batches: int
    sizes: tuple[int, ...]
    average: Any = None
    donate: bool = False
    rows: int = 3


OPTIMIZERS = {
    "adamw": lambda: hf.optim.adamw(0.05),
    "adamw foreach": lambda: hf.optim.adamw(0.05, mode="foreach"),
    "amsgrad": lambda: hf.optim.adam(0.05, amsgrad=True),
    "sgd": lambda: hf.optim.sgd(0.1, momentum=0.9),
    "rmsprop": lambda: hf.optim.rmsprop(0.01),
    "lion": lambda: hf.optim.lion(0.01),
    "clipped": lambda: hf.optim.chain(hf.optim.clip_by_global_norm(0.5), hf.optim.adamw(0.05)),
    "clipped by value": lambda: hf.optim.chain(hf.optim.clip_by_value(0.01), hf.optim.sgd(0.1)),
    "skipping": lambda: hf.optim.skip_non_finite(hf.optim.sgd(0.1)),
    "tunable": lambda: hf.optim.tunable(hf.optim.adamw, lr=0.05),
    "groups": lambda: hf.optim.groups({"*.bias": hf.optim.sgd(0.1)}, default=hf.optim.adamw(0.05)),
}


def start(training: Training, *, sharded: bool, rule: Any = None):
    """A fresh state and its step."""
    model, params, buffers = hf.functional(Net, seed=5)
    if sharded:
        params = hf.distributed.shard(params, mesh(), rule)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        whole = hf.distributed.gathered(params) if sharded else params
        out, buffers = model(whole, buffers, x, key=key)
        loss = torch.nn.functional.mse_loss(out, y)
        return loss, hf.Aux(buffers=buffers, weight=len(x), metrics={"mae": (out - y).abs().mean()})

    optimizer = OPTIMIZERS[training.optimizer]()
    average = None if training.average is None else hf.ema(training.average)
    state = hf.init_state(params, optimizer, buffers=buffers, average=average)
    step = hf.make_step(loss_fn, optimizer, average=average)
    return state, step


def batch_of(training: Training, iteration: int, *, sharded: bool):
    """This process's micro-batches of one iteration; all of them where nothing is sharded."""
    generator = torch.Generator().manual_seed(iteration)
    items = []
    for size in training.sizes[: training.micro_batches]:
        items.append((torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator)))
    count, rank, world = training.micro_batches, 0, 1
    if sharded:
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    first, last = count * rank // world, count * (rank + 1) // world
    return MicroBatches(tuple(items[first:last]), first, count, "tree")


def advance(state, step, training: Training, iterations: range, *, sharded: bool):
    if sharded:
        step_module.microsteps = functools.partial(hf.microsteps, reduce=reduce_over_gloo)
    call = step.donating if training.donate else step
    for iteration in iterations:
        state = call(state, batch_of(training, iteration, sharded=sharded))
        counters = state.counters
        counters = counters._replace(iteration=iteration + 1, micro_step=(iteration + 1) * training.micro_batches)
        state = state.replace(counters=counters)
    return state


def full(tree):
    """The tree with whole tensors."""
    with torch.no_grad():
        return hf.distributed.gathered(tree)


def train(training: Training, iterations: int, *, sharded: bool = True):
    """The whole tensors of the state after some iterations."""
    state, step = start(training, sharded=sharded)
    state = advance(state, step, training, range(iterations), sharded=sharded)
    return full(plain(state))


def plain(state):
    """What is compared of a state, as a tree of dicts."""
    fields = ("params", "buffers", "opt_state", "averages", "metrics", "first_bad")
    return {name: getattr(state, name) for name in fields}


def by_columns(path, tensor):
    """A rule that cuts matrices the other way."""
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(tensor.dim() - 1) if tensor.dim() > 1 else Replicate()]


RULES = {"rows": None, "columns": by_columns}


def sharded_store(root: str):
    from helios_fn.checkpoint import ShardedStore

    return ShardedStore(root, "run")


def facts(iteration: int) -> dict[str, Any]:
    return {"epoch": 0, "iteration": iteration, "micro_step": iteration, "record": {"by": "a test"}}


def save(root: str, training: Training, iterations: int, rule: str = "rows"):
    """Train and save; returns the whole tensors."""
    state, step = start(training, sharded=True, rule=RULES[rule])
    state = advance(state, step, training, range(iterations), sharded=True)
    path = sharded_store(root).save(state, **facts(iterations), free=("metrics", "validation.metrics"))
    return str(path), full(plain(state))


def load(root: str, training: Training, rule: str = "rows"):
    """The newest checkpoint, as whole tensors."""
    state, _ = start(training, sharded=True, rule=RULES[rule])
    store = sharded_store(root)
    state = store.load(store.newest(), state, free=("metrics", "validation.metrics"))
    return full(plain(state))


def resume(root: str, training: Training, iterations: range, rule: str = "rows"):
    """Load the newest checkpoint and go on."""
    state, step = start(training, sharded=True, rule=RULES[rule])
    store = sharded_store(root)
    state = store.load(store.newest(), state, free=("metrics", "validation.metrics"))
    state = advance(state, step, training, iterations, sharded=True)
    return full(plain(state))
