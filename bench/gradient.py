"""What does ``hf.value_and_grad`` of an ordinary module cost, against torch's functional way?

The peer is ``torch.func.grad_and_value`` over ``torch.func.functional_call``; the floor is the module itself with
``backward``, whose gradients end up in its parameters. All compute the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from . import models
from .harness import Bench, Case, attempt
from .models import Workload

BACKWARD, FUNC, OURS = "module, backward()", "torch.func.grad_and_value + functional_call", "hf.value_and_grad"
LIMITS = [(models.MLP, 0.55), (models.GPT_SMALL, 0.92)]


def backward(workload: Workload) -> Callable[[], Any]:
    """The imperative way."""
    module = models.module_like(workload, *models.pure_parts(workload)[1:])
    batches = workload.cycle()

    def iteration() -> torch.Tensor:
        x, y = next(batches)
        module.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        return loss

    return iteration


def by_func(workload: Workload) -> Callable[[], Any]:
    """torch's functional way."""
    _, params, buffers = models.pure_parts(workload)
    module, batches = workload.network(), workload.cycle()

    def loss_fn(params: Any, batch: models.Batch) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(torch.func.functional_call(module, (params, buffers), (x,)), y)

    both = torch.func.grad_and_value(loss_fn)
    return lambda: both(params, next(batches))


def ours(workload: Workload) -> Callable[[], Any]:
    """Our way."""
    import helios_fn as hf

    model, params, buffers = hf.functional(workload.network, seed=0)
    batches = workload.cycle()

    def loss_fn(params: Any, batch: models.Batch) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(model(params, buffers, x)[0], y)

    both = hf.value_and_grad(loss_fn)
    return lambda: both(params, next(batches))


def same_gradients(workload: Workload) -> bool:
    """Whether torch's functional way and ours agree in every bit."""
    theirs, mine = by_func(workload)()[0], ours(workload)()[1]
    return all(torch.equal(theirs[name], mine[name]) for name in mine)


def compare(bench: Bench, workload: Workload, limit: float) -> None:
    """Measure one network."""
    makers = {BACKWARD: backward, FUNC: by_func, OURS: ours}
    cases: dict[str, Case] = {name: attempt(functools.partial(make, workload)) for name, make in makers.items()}
    timing = bench.compare(workload.name, cases, base=FUNC)
    same = "equal in every bit" if same_gradients(workload) else "not equal in every bit"
    bench.note(f"The gradients of the last two are {same}.")
    what = f"{workload.name}: value_and_grad / torch.func.grad + functional_call"
    if bench.target_ratio(what, timing, OURS, FUNC, at_most=limit).verdict == "missed":
        bench.explain(f"{workload.name}, hf.value_and_grad", ours(workload))


def main() -> None:
    """Each network in a process of its own."""
    bench, todo = Bench("gradient", __doc__), {workload.name: (workload, limit) for workload, limit in LIMITS}
    bench.in_parts(list(todo), lambda name: compare(bench, *todo[name]))
    bench.finish()


if __name__ == "__main__":
    main()
