"""What the processes of the sharded tests do."""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple

import torch

import helios_fn as hf
from helios_fn.types import MicroBatches


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
    "every": lambda: hf.optim.every(2, hf.optim.adamw(0.05)),
    "decayed": lambda: hf.optim.chain(hf.optim.add_decayed_weights(0.1, mask="*.weight"), hf.optim.sgd(0.1)),
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


def parts_used_by_one():
    """Each process's loss uses a gathering that the other's does not; returns the mean's gradients, whole."""
    rank = torch.distributed.get_rank()
    params = hf.distributed.shard({"a": torch.ones(4, 2), "b": torch.ones(3), "unused": torch.ones(2)}, mesh())

    def loss_fn(params, buffers, batch, key):
        a = hf.distributed.gathered(params["a"])
        b = hf.distributed.gathered(params["b"])
        hf.distributed.gathered(params["unused"])
        used = (a * a).sum() * batch if rank == 0 else (b * 3).sum() * batch
        return used, hf.Aux(weight=3 if rank == 0 else 1)

    return mean_grads(params, loss_fn, [torch.tensor(2.0)])


def mean_grads(params, loss_fn, items, *, count: int | None = None):
    """What a step would hand to the optimiser, as whole tensors."""
    from helios_fn.nn import loss_grad

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    count = len(items) * world if count is None else count
    batch = MicroBatches(tuple(items), rank * len(items), count, "tree")
    state = hf.init_state(params, hf.optim.sgd(0.1))
    return full(hf.microsteps(loss_grad(loss_fn), state, batch).grads)


def weightless(weights, dtype):
    """Gradients of a linear function, one micro-batch for each process, by the weights of the ranks."""
    rank = torch.distributed.get_rank()
    params = hf.distributed.shard({"w": torch.ones(5, dtype=dtype)}, mesh())

    def loss_fn(params, buffers, batch, key):
        loss = (hf.distributed.gathered(params)["w"] * batch).sum()
        # One that has no part in the mean may be anything, and depend on nothing.
        return (loss if weights[rank] else torch.tensor(torch.nan)), hf.Aux(weight=weights[rank])

    return mean_grads(params, loss_fn, [torch.full((5,), rank + 1.0, dtype=dtype)])


def recomputed():
    """The gradients of two layers that are gathered one at a time and again in the backward pass, and as one."""
    from torch.utils.checkpoint import checkpoint

    generator = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(4, 4, generator=generator) for name in ("first", "second")}
    params = hf.distributed.shard(whole, mesh())

    held = []

    def layer(part, x):
        full = hf.distributed.gathered(part)
        held.append(weakref.ref(full))
        return torch.tanh(x @ full)

    def by_layer(params, buffers, x, key):
        for name in ("first", "second"):
            x = checkpoint(layer, params[name], x, use_reentrant=False)
        assert not any(reference() is not None for reference in held), "a layer's weights are kept"
        return x.sum()

    def at_once(params, buffers, x, key):
        params = hf.distributed.gathered(params)
        for name in ("first", "second"):
            x = torch.tanh(x @ params[name])
        return x.sum()

    items = [torch.randn(3, 4, generator=generator) for _ in range(2)]
    return mean_grads(params, by_layer, items), mean_grads(params, at_once, items)


def clipped(leaves, max_norm):
    """Clip sharded gradients; returns them whole."""
    grads = hf.distributed.shard(leaves, mesh())
    transform = hf.optim.clip_by_global_norm(max_norm)
    return full(transform.update(grads, transform.init(grads), grads)[0])


def with_a_bad_element(value):
    """One step whose gradient is bad in one element: what each process notes, and whether params moved."""
    params = hf.distributed.shard({"w": torch.zeros(4)}, mesh())
    bad = torch.tensor([1.0, 1.0, 1.0, value])

    def loss_fn(params, buffers, batch, key):
        return (hf.distributed.gathered(params)["w"] * bad).sum()

    optimizer = hf.optim.skip_non_finite(hf.optim.sgd(0.1))
    state = hf.init_state(params, optimizer)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    state = hf.make_step(loss_fn, optimizer)(state, MicroBatches((0,), rank, world))
    return int(state.first_bad), int(state.opt_state.skipped), full(state.params)["w"]


def guarded():
    """What the driver's watchers say of a step that writes to a shard, and of memory that was kept."""
    from helios_fn.config import RunConfig
    from helios_fn.driver.donation import Donation
    from helios_fn.driver.guard import PurityGuard

    state = hf.init_state(hf.distributed.shard({"w": torch.zeros(4)}, mesh()), hf.optim.sgd(0.1))
    found = []
    for full_checks in (1, 0):
        guard = PurityGuard(lambda state, batch: (state.params["w"].to_local().add_(1), state)[1], full_checks)
        try:
            guard(state, None)
        except hf.PurityError as error:
            found.append(str(error))
    donation = Donation(
        RunConfig(unit="iteration", total=1),
        hf.make_step(lambda p, b, x, k: p["w"].sum(), hf.optim.sgd(0.1)),
        shown=False,
    )
    donation.keep(state)
    mine = donation.private(state).params["w"]
    return found, mine.to_local().data_ptr() != state.params["w"].to_local().data_ptr()


def refused(name: str) -> str:
    """The message of what is refused."""
    try:
        REFUSED[name]()
    except (TypeError, ValueError, hf.NotTraceable) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def _params(**leaves):
    return hf.distributed.shard(leaves or {"w": torch.ones(4, 4)}, mesh())


def _use(params, buffers, batch, key):
    return hf.distributed.gathered(params)["w"].sum()


def _place(placement, dtype=torch.float32):
    from torch.distributed.tensor import DTensor

    return {"w": DTensor.from_local(torch.ones(4, dtype=dtype), mesh(), [placement])}


def _with_sam():
    hf.sam()(hf.value_and_grad(_use, has_aux=False))(_params(), None, None, hf.random.key(0))


def _on_two_dimensions():
    from torch.distributed.device_mesh import init_device_mesh

    hf.distributed.shard({"w": torch.ones(4)}, init_device_mesh("cpu", (2, 1)))


def _on_half_the_processes():
    from torch.distributed.device_mesh import DeviceMesh

    rank = torch.distributed.get_rank()
    alone = [DeviceMesh("cpu", [each]) for each in range(2)][rank]
    mean_grads(hf.distributed.shard({"w": torch.ones(4)}, alone), _use, [0])


def _partial():
    from torch.distributed.tensor import Partial

    hf.distributed.gathered(_place(Partial()))


def _half():
    from torch.distributed.tensor import Replicate

    hf.value_and_grad(lambda params: _use(params, 0, 0, 0))(_place(Replicate(), torch.float16))


def _buffer_that_changes():
    def loss_fn(params, buffers, batch, key):
        return _use(params, None, None, None), hf.Aux(buffers={"b": buffers["b"] * 2})

    from helios_fn.nn import loss_grad

    state = hf.init_state(_params(), hf.optim.sgd(0.1), buffers=_params(b=torch.ones(4)))
    batch = MicroBatches((0,), torch.distributed.get_rank(), 2)
    hf.microsteps(loss_grad(loss_fn), state, batch)


def _under_vmap(params):
    torch.func.vmap(lambda x: _use(params, 0, 0, 0) * x)(torch.ones(2))


def _by_hand():
    def grad_fn(params, buffers, batch, key):
        params = {"w": params["w"].detach().requires_grad_()}
        loss = _use(params, None, None, None)
        return (loss, None), {"w": torch.autograd.grad(loss, params["w"])[0]}

    state = hf.init_state(_params(), hf.optim.sgd(0.1))
    hf.microsteps(grad_fn, state, MicroBatches((0,), torch.distributed.get_rank(), 2))


def _other_pieces():
    from torch.distributed.tensor import Replicate

    optimizer, params = hf.optim.sgd(0.1), _params()
    grads = hf.distributed.shard({"w": torch.ones(4, 4)}, mesh(), lambda path, leaf: [Replicate()])
    optimizer.update(grads, optimizer.init(params), params)


REFUSED = {
    "uneven": lambda: mean_grads(_params(), _use, [0], count=3),
    "plain batch": lambda: hf.microsteps(
        hf.value_and_grad(_use), hf.init_state(_params(), hf.optim.sgd(0.1)), torch.zeros(1)
    ),
    "not gathered": lambda: hf.value_and_grad(lambda params: params["w"].sum().full_tensor())(_params()),
    "higher order": lambda: hf.value_and_grad(lambda params: _use(params, 0, 0, 0), higher_order=True)(_params()),
    "transform": lambda: _under_vmap(_params()),
    "by hand": _by_hand,
    "sam": _with_sam,
    "two dimensions": _on_two_dimensions,
    "half the processes": _on_half_the_processes,
    "partial": _partial,
    "half precision": _half,
    "buffer": _buffer_that_changes,
    "twice": lambda: hf.distributed.shard(_params(), mesh()),
    "no mesh": lambda: hf.distributed.shard({"w": torch.ones(4)}, 2),
    "rule": lambda: hf.distributed.shard({"w": torch.ones(4)}, mesh(), lambda path, leaf: None),
    "other pieces": _other_pieces,
    "digest": lambda: hf.tree.digest(_params()),
    **{
        name: functools.partial(lambda optimizer: optimizer.init(_params()), optimizer)
        for name, optimizer in {
            "adafactor": hf.optim.adafactor(0.1),
            "muon": hf.optim.muon(0.1),
            "lookahead": hf.optim.lookahead(hf.optim.sgd(0.1)),
            "from_torch": hf.optim.from_torch(torch.optim.Adamax, lr=0.1),
            "adaptive_clip": hf.optim.adaptive_clip(),
        }.items()
    },
}


def compiled() -> str:
    """The message of a compiled step."""
    optimizer = hf.optim.sgd(0.1)
    step = hf.make_step(_use, optimizer, compile="grad", compile_options={"backend": "eager"})
    try:
        step(hf.init_state(_params(), optimizer), MicroBatches((0,), torch.distributed.get_rank(), 2))
    except (TypeError, hf.NotTraceable) as error:
        return str(error)
    return "nothing was refused"


def follow(source: str, folder: str) -> str:
    """Run a program in a folder; returns the digest of its final weights."""
    import os

    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(source, "guide", "exec"), names)
    return hf.tree.digest(names["params"])
