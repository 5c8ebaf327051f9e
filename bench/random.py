"""What do keys, scopes and keyed draws cost, against the generators that torch has of its own?

Derivation is host arithmetic, so its figures are microseconds. Keyed dropout is the layer of every day as a pure
function of a key: compiled it is set against torch's own dropout, eager (what people run) and compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import models
from .harness import Bench, Case, attempt

NATIVE, NATIVE_COMPILED = "native dropout, eager", "native dropout, compiled"
KEYED, KEYED_COMPILED = "keyed dropout, eager", "keyed dropout, compiled"
ELEMENTS = 1_000_000


def derivation() -> dict[str, Case]:
    """Keys and scopes."""
    import helios_fn as hf

    key, state = hf.random.key(0), hf.init_state({"w": torch.zeros(1)}, opt_state=())
    numbers = iter(range(1 << 62))

    def scope() -> None:
        with hf.random.scope(key):
            pass

    def forked() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)

    def micro_keys() -> Any:
        return hf.micro_keys(state.replace(counters=hf.Counters(0, next(numbers))), None)

    return {
        "torch.random.fork_rng + manual_seed (torch's generator alone)": forked,
        "random.scope (torch, random and NumPy)": scope,
        "random.within, nothing drawn": lambda: hf.random.within(key, _nothing),
        "random.fold_in(key, name, i)": lambda: hf.random.fold_in(key, "noise", next(numbers)),
        "step_key of this iteration": lambda: hf.step_key(state, "noise"),
        "micro_keys of the next iteration, with its state": micro_keys,
    }


def _nothing() -> None:
    pass


def dropout(compiled: bool, keyed: bool) -> Callable[[], Any]:
    """One dropout of a million elements."""
    import helios_fn as hf

    x, keys = torch.randn(ELEMENTS), hf.random.split(hf.random.key(0), 64).unbind()
    numbers = iter(range(1 << 62))

    def apply(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        if not keyed:
            return F.dropout(x, 0.1)
        with hf.random.keyed(key):
            return F.dropout(x, 0.1)

    run = torch.compile(apply, fullgraph=True, dynamic=False) if compiled else apply
    return lambda: run(x, keys[next(numbers) % len(keys)])


class Dropped(nn.Module):
    """An MLP with dropout after each layer, wide enough that the draws count."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(256, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Noisy(nn.Module):
    """A block of the small GPT with dropout on both residual branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.drop = models.Block(width), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.block(self.drop(x)))


class NoisyGPT(models.GPT):
    """The small GPT with eight dropouts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Noisy(128) for _ in range(4))


def images() -> models.Batch:
    """A batch for the MLP."""
    return torch.randn(128, 256), torch.randint(0, 10, (128,))


def text() -> models.Batch:
    """A batch for the GPT."""
    return models.text(8, count=1)[0]


def step(network: Callable[[], nn.Module], make_batch: Callable[[], models.Batch], keyed: bool) -> Callable[[], Any]:
    """A compiled training step of a network with dropout."""
    import helios_fn as hf

    model, params, buffers = hf.functional(network, seed=0, draws="keyed" if keyed else "scope")
    optimizer = hf.optim.adamw(1e-3)

    def loss_fn(params: Any, buffers: Any, batch: models.Batch, key: torch.Tensor) -> torch.Tensor:
        x, y = batch
        logits, _ = model(params, buffers, x, key=key if keyed else None)
        return F.cross_entropy(logits, y)

    made = hf.make_step(loss_fn, optimizer, compile="grad")
    batch = make_batch()
    state = made(hf.init_state(params, optimizer, buffers=buffers), batch)

    def iteration() -> None:
        nonlocal state
        state = made.donating(state, batch)

    return iteration


def compare_steps(bench: Bench) -> None:
    """Whole compiled steps: does keyed dropout slow training down?"""
    for name, network, batch in (("an MLP", Dropped, images), ("a GPT", NoisyGPT, text)):
        steps = {
            "native dropout": attempt(functools.partial(step, network, batch, False)),
            "keyed dropout": attempt(functools.partial(step, network, batch, True)),
        }
        timing = bench.compare(f"compiled step of {name} with dropout", steps, base="native dropout")
        what = f"compiled step of {name} with keyed / with native dropout"
        bench.target_ratio(what, timing, "keyed dropout", "native dropout", at_most=1.05)


def main() -> None:
    """Measure, and judge what has a target."""
    bench = Bench("random", __doc__)
    cases = derivation()
    bench.compare("keys and scopes, nothing drawn", cases, base=next(iter(cases)))
    makers = {
        NATIVE: lambda: dropout(compiled=False, keyed=False),
        NATIVE_COMPILED: lambda: dropout(compiled=True, keyed=False),
        KEYED: lambda: dropout(compiled=False, keyed=True),
        KEYED_COMPILED: lambda: dropout(compiled=True, keyed=True),
    }
    if bench.quick:
        makers = {name: make for name, make in makers.items() if "eager" in name}
    timing = bench.compare("dropout, 10^6 elements", {n: attempt(make) for n, make in makers.items()}, base=NATIVE)
    if not bench.quick:
        bench.target_ratio(
            "keyed dropout compiled / native dropout eager, 10^6 elements", timing, KEYED_COMPILED, NATIVE, at_most=0.5
        )
        compare_steps(bench)
    bench.finish()


if __name__ == "__main__":
    main()
