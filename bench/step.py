"""What does one training step cost, against the loop that you would write by hand?

The hand-written loop is ``zero_grad``, forward, ``backward``, ``step``, and nothing else. Ours is the step that
``hf.make_step`` returns, with everything it does: the key and its scope, the metrics, the watch for values that are not
finite. *Pure* leaves the state that it is given as it was; *donated* may overwrite it, which is what ``hf.run`` does.
Each network is measured in a process of its own.

    python -m bench.step [--part "MLP 26k"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional as F

from . import models
from .harness import Bench, Case, Skip, Timing, attempt
from .models import LEARNING_RATE, Workload

DEFAULT, FUSED, COMPILED = "loop, default AdamW", "loop, fused AdamW", "loop, torch.compile + fused"
PURE, DONATED = "ours, pure", "ours, donated"
GRAD, WHOLE = 'ours, compile="grad", donated', 'ours, compile="whole", donated'
WHOLE_CPP = 'ours, compile="whole" with cpp_wrapper, donated'


class Limits(NamedTuple):
    """At most these ratios, where something is wanted of a workload; and which ways to compile it are measured.

    To compile takes longer than to measure, so of the larger networks only those ways that matter are.
    """

    workload: Workload
    pure: float | None = None
    donated: float | None = None
    default: float | None = None
    compiled: float | None = None
    compiled_loop: float | None = None
    compiled_ways: tuple[str, ...] = ()


LIMITS = [
    Limits(models.MLP, 1.00, 0.90, 0.70, 0.50, 0.42, compiled_ways=(COMPILED, GRAD, WHOLE, WHOLE_CPP)),
    # Its calls are nothing beside its kernels, and each way takes more than a minute to compile.
    Limits(models.GPT_SMALL, 1.05, 1.02, 0.97, 0.93, 0.96, compiled_ways=(COMPILED, GRAD)),
    Limits(models.CONV, compiled_ways=(WHOLE,)),
    Limits(models.MANY_100, 1.05, 0.90, 0.55, 0.42, compiled_ways=(WHOLE_CPP,)),
    # Unrolled, 250 layers take minutes to compile and nobody would.
    Limits(models.MANY_500, 1.05, 0.90, 0.55),
]


def loop(workload: Workload, *, fused: bool | None, compiled: bool = False) -> Callable[[], Any]:
    """One iteration of the hand-written loop."""
    _, params, buffers = models.pure_parts(workload)
    module = models.module_like(workload, params, buffers)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=fused)
    model = torch.compile(module) if compiled else module
    batches = workload.cycle()

    def iteration() -> Any:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return module

    return iteration


def ours(
    workload: Workload,
    *,
    donate: bool = False,
    compiled: Literal["grad", "whole"] | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[], Any]:
    """One call of our step on the state that the last one returned; ``options`` are the compiler's."""
    import helios_fn as hf

    loss_fn, params, buffers = models.pure_parts(workload)
    optimizer = hf.optim.adamw(LEARNING_RATE)
    step = hf.make_step(loss_fn, optimizer, compile=compiled, compile_options={"options": options} if options else None)
    state = hf.init_state(params, optimizer, buffers=buffers)
    call: Any
    call, batches = (step.donating if donate else step), workload.cycle()

    def iteration() -> Any:
        nonlocal state
        state = call(state.replace(metrics={}), next(batches))
        return state

    return iteration


def ways(workload: Workload) -> dict[str, Callable[[], Callable[[], Any]]]:
    """All that can be measured, by name, still to be made."""
    wrapped = {"cpp_wrapper": True}
    return {
        DEFAULT: lambda: loop(workload, fused=None),
        FUSED: lambda: loop(workload, fused=True),
        PURE: lambda: ours(workload),
        DONATED: lambda: ours(workload, donate=True),
        COMPILED: lambda: loop(workload, fused=True, compiled=True),
        GRAD: lambda: ours(workload, donate=True, compiled="grad"),
        WHOLE: lambda: ours(workload, donate=True, compiled="whole"),
        WHOLE_CPP: lambda: ours(workload, donate=True, compiled="whole", options=wrapped),
    }


def cases(limits: Limits, *, compiles: bool) -> dict[str, Case]:
    """By name, as far as they are wanted and can be had here."""
    wanted = [DEFAULT, FUSED, PURE, DONATED, *(limits.compiled_ways if compiles else ())]
    make = ways(limits.workload)
    return {name: attempt(make[name]) for name in wanted}


def differing(workload: Workload, iterations: int, *, donate: bool) -> int | None:
    """How many tensors of our state differ from the module's in any bit, after so many iterations of both."""
    peer, mine = loop(workload, fused=True), attempt(lambda: ours(workload, donate=donate))
    if isinstance(mine, Skip) or not callable(mine):
        return None
    peer()  # ``attempt`` has made one iteration of ours already
    for _ in range(iterations - 1):
        module, state = peer(), mine()
    theirs = module.state_dict()
    return sum(not torch.equal(leaf, theirs[name]) for name, leaf in {**state.params, **state.buffers}.items())


def compare(bench: Bench, limits: Limits) -> None:
    """Measure one workload and hold it against its limits."""
    name = limits.workload.name
    made = cases(limits, compiles=not bench.quick)
    timing = bench.compare(name, made, base=FUSED, chunk=0.04)
    compiled = faster(timing, GRAD, WHOLE, WHOLE_CPP)
    for label, limit, case, base in (
        ("eager pure step / loop with fused AdamW", limits.pure, PURE, FUSED),
        ("eager donated step / loop with fused AdamW", limits.donated, DONATED, FUSED),
        ("eager pure step / loop with default AdamW", limits.default, PURE, DEFAULT),
        (f"compiled step ({mode(compiled)}, donated) / loop with fused AdamW", limits.compiled, compiled, FUSED),
        (f"compiled step ({mode(compiled)}, donated) / compiled loop", limits.compiled_loop, compiled, COMPILED),
    ):
        if limit is not None:
            bench.target_ratio(f"{name}: {label}", timing, case, base, at_most=limit)
    iterations = 3 if bench.quick else 20
    for way, donate in (("pure", False), ("donated", True)):
        figure = differing(limits.workload, iterations, donate=donate)
        what = (
            f"{name}: tensors of the eager {way} step that differ from the fused loop's after {iterations} iterations"
        )
        bench.target(what, figure, at_most=0)
    missed = [target.what for target in bench.targets if target.verdict == "missed"]
    if any("eager" in what for what in missed):
        bench.in_situ(f"{name}, the parts of our step", loop(limits.workload, fused=True), parts(limits.workload))
    if any("compiled step" in what for what in missed):
        bench.explain(f"{name}, {mode(compiled)}, donated", made[compiled])  # type: ignore[arg-type]


def parts(workload: Workload) -> dict[str, Callable[[], Any]]:
    """What our step is made of, and torch's own calls that do the core of it."""
    import helios_fn as hf
    from helios_fn.finiteness import are_found_finite

    loss_fn, params, buffers = models.pure_parts(workload)
    optimizer, batch = hf.optim.adamw(LEARNING_RATE), workload.batches()[0]
    state = hf.init_state(params, optimizer, buffers=buffers)
    key, both = hf.micro_keys(state, batch)[0], hf.value_and_grad(loss_fn, has_aux=True)
    (loss, _), grads = both(params, buffers, batch, key)
    given = {name: leaf.clone() for name, leaf in params.items()}, optimizer.init(params)

    def scope() -> None:
        with hf.random.scope(key):
            pass

    def donated() -> None:
        nonlocal given
        given = optimizer.update(grads, given[1], given[0], donate=True)

    return {
        "torch.autograd.grad of the loss": lambda: direct_gradient(loss_fn, params, buffers, batch, key),
        "hf.value_and_grad": lambda: both(params, buffers, batch, key),
        "torch's clone of params and memory": lambda: torch._foreach_clone([*params.values()] * 3),
        "optimizer.update": lambda: optimizer.update(grads, state.opt_state, params),
        "optimizer.update(donate=True)": donated,
        "key of the micro-batch": lambda: hf.micro_keys(state, batch),
        "scope of the key": scope,
        "watch for values that are not finite": lambda: are_found_finite(loss, [*grads.values()]),
        "optimizer.monitor": lambda: optimizer.monitor(state.opt_state),
        "state.replace": lambda: state.replace(metrics={}),
    }


def direct_gradient(loss_fn: Any, params: Any, buffers: Any, batch: Any, key: Any) -> Any:
    """The gradient with nothing around it."""
    leaves = [leaf.detach().requires_grad_() for leaf in params.values()]
    loss, _ = loss_fn(dict(zip(params, leaves, strict=True)), buffers, batch, key)
    return torch.autograd.grad(loss, leaves)


def faster(timing: Timing, *names: str) -> str:
    """The fastest of the cases that were measured (the first if none was)."""
    return min((name for name in names if name in timing), key=timing.median, default=names[0])


def mode(case: str) -> str:
    """The compile mode in a case's name."""
    return case.split(", ")[1].replace('"', "")


def main() -> None:
    """Each workload in a process of its own."""
    bench, limits = Bench("step", __doc__), {limits.workload.name: limits for limits in LIMITS}
    bench.in_parts(list(limits), lambda name: compare(bench, limits[name]))
    bench.finish()


if __name__ == "__main__":
    main()
