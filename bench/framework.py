"""What does a whole training iteration cost in each framework: batch, gradient, update, and all that happens around?

The MLP of 26 thousand parameters, because there the surroundings count most; batches come from memory, nothing is
logged. Each framework trains as its users do, eagerly, with torch's fused AdamW; a second table gives all of them
``torch.compile``. Ours is ``hf.run`` with everything that is on by default.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import loops, models, ours, standin
from .driver import unseen
from .harness import Bench, Case, Span, Whole, attempt
from .loops import Feed, Job, Run
from .models import LEARNING_RATE, MLP

LIMITS = {"Lightning": 0.31, "Helios": 0.56, "Ignite": 0.56, "Accelerate": 0.40}
LOOP, EAGER, COMPILED = "loop by hand", "helios_fn, eager", 'helios_fn, compile="whole"'


def sample(run: Run, module: nn.Module | None, total: int) -> Span:
    """One training run. A module goes on from where the last run has left it, so that it is compiled once."""
    feed = Feed(MLP.batches(), total, warm=max(1, total // 10))
    with tempfile.TemporaryDirectory() as folder, unseen():
        run(Job(feed, Path(folder), module=module, loss=loss))
    return feed.span


def loss(module: nn.Module, batch: models.Batch) -> torch.Tensor:
    """The cross entropy."""
    x, y = batch
    return F.cross_entropy(module(x), y)


def peer(run: Run, total: int, *, compiled: bool) -> Whole:
    """A framework's case."""
    module: Any = models.module_like(MLP, *models.pure_parts(MLP)[1:])
    return Whole(functools.partial(sample, run, torch.compile(module) if compiled else module, total))


def our_case(total: int, **options: Any) -> Whole:
    """``hf.run`` with a step made with these options."""
    import helios_fn as hf

    loss_fn, params, buffers = models.pure_parts(MLP)
    optimizer = hf.optim.adamw(LEARNING_RATE)
    step: Any = hf.make_step(loss_fn, optimizer, **options)

    def run(job: Job) -> None:
        ours.train(job, step, lambda: hf.init_state(params, optimizer, buffers=buffers))

    return Whole(functools.partial(sample, run, None, total))


def compare(bench: Bench, way: str) -> None:
    """Ours in all forms against all of them, eager or compiled."""
    substituted = standin.torchvision()
    if substituted:
        bench.note(substituted)
    total, compiled = (20 if bench.quick else 300), way == "compiled"
    cases: dict[str, Case] = {LOOP: attempt(lambda: peer(loops.bare, total, compiled=compiled))}
    cases[EAGER] = attempt(lambda: our_case(total))
    if not bench.quick:
        cases[COMPILED] = attempt(lambda: our_case(total, compile="whole"))
    for name, run in loops.FRAMEWORKS.items():
        cases[name] = attempt(functools.partial(peer, run, total, compiled=compiled))
    timing = bench.compare(f"MLP, peers {way}", cases, base=LOOP)
    if compiled:
        return
    for name, limit in LIMITS.items():
        what = f"whole training iteration, MLP: ours compiled / {name}"
        bench.target_ratio(what, timing, COMPILED, name, at_most=limit)
    if any(target.verdict == "missed" for target in bench.targets):
        case = our_case(1000, compile="whole")
        bench.explain("hf.run with the compiled step", case.function, per=1000)


def main() -> None:
    """The peers eager, then the peers compiled."""
    bench = Bench("framework", __doc__)
    bench.in_parts(["eager"] if bench.quick else ["eager", "compiled"], lambda way: compare(bench, way))
    bench.finish()


if __name__ == "__main__":
    main()
