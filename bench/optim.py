"""What does an update cost, pure and donated, against torch's own in place?

The peer is ``torch.optim``'s ``step()`` in the same mode, with gradients that lie ready. *Pure* leaves parameters and
state as they were and returns new ones; *donated* writes into their memory; *adapted* is the same torch class
behind ``optim.from_torch``, pure. All compute the same bits.

    python -m bench.optim [--part "MLP 26k"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import models
from .harness import Bench, Case, attempt
from .models import LEARNING_RATE, Workload
from .step import FUSED as LOOP
from .step import loop

TORCH, PURE, DONATED, ADAPTED = "torch, in place", "ours, pure", "ours, donated", "ours, adapted"
SIZES = [models.MLP, models.MANY_100, models.MANY_500]
EACH, STEP = "each optimiser", "whole step, adapted"


class Algorithm(NamedTuple):
    """An optimiser of ours and torch's, with what makes them compute the same."""

    name: str
    cls: str
    hyper: dict[str, Any]
    mode: str | None


ADAMW = Algorithm("adamw", "AdamW", {}, "fused")
ALGORITHMS = [
    ADAMW,
    Algorithm("adam", "Adam", {}, "fused"),
    Algorithm("sgd", "SGD", {"momentum": 0.9}, "fused"),
    Algorithm("rmsprop", "RMSprop", {}, "foreach"),
    Algorithm("adafactor", "Adafactor", {}, "foreach"),
    Algorithm("muon", "Muon", {}, None),
]


def tensors(workload: Workload, *, matrices: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a workload, and gradients for them."""
    _, params, _ = models.pure_parts(workload)
    chosen = {name: leaf for name, leaf in params.items() if leaf.dim() == 2 or not matrices}
    return chosen, {name: torch.randn_like(leaf) for name, leaf in chosen.items()}


def settings(algorithm: Algorithm) -> dict[str, Any]:
    """The arguments of torch's class."""
    modes: dict[str | None, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, None: {}}
    return {"lr": LEARNING_RATE, **algorithm.hyper, **modes[algorithm.mode]}


def theirs(algorithm: Algorithm, params: dict[str, Any], grads: dict[str, Any]) -> Callable[[], Any]:
    """One ``step()`` of torch's optimiser."""
    leaves = [leaf.clone().requires_grad_() for leaf in params.values()]
    for leaf, grad in zip(leaves, grads.values(), strict=True):
        leaf.grad = grad
    return getattr(torch.optim, algorithm.cls)(leaves, **settings(algorithm)).step


def ours(optimizer: Any, params: dict[str, Any], grads: dict[str, Any], *, donate: bool = False) -> Callable[[], Any]:
    """One update of ours, of what the last one returned."""
    own = {name: leaf.clone() for name, leaf in params.items()}
    held = (own, optimizer.init(own))

    def update() -> Any:
        nonlocal held
        held = optimizer.update(grads, held[1], held[0], donate=donate)
        return held

    return update


def cases(algorithm: Algorithm, workload: Workload) -> dict[str, Case]:
    """All ways of one update."""
    from helios_fn import optim

    mode = {"mode": algorithm.mode} if algorithm.mode else {}
    native = getattr(optim, algorithm.name)(LEARNING_RATE, **algorithm.hyper, **mode)
    adapted = optim.from_torch(getattr(torch.optim, algorithm.cls), **settings(algorithm))
    params, grads = tensors(workload, matrices=algorithm.name == "muon")
    return {
        TORCH: theirs(algorithm, params, grads),
        PURE: attempt(lambda: ours(native, params, grads)),
        DONATED: attempt(lambda: ours(native, params, grads, donate=True)),
        ADAPTED: attempt(lambda: ours(adapted, params, grads)),
    }


def compare_sizes(bench: Bench, workload: Workload) -> None:
    """AdamW alone."""
    timing = bench.compare(f"AdamW, fused, {workload.name}", cases(ADAMW, workload), base=TORCH)
    bench.target_ratio(f"{workload.name}: pure update / torch's in place", timing, PURE, TORCH, at_most=0.9)
    bench.target_ratio(f"{workload.name}: donated update / torch's in place", timing, DONATED, TORCH, at_most=0.6)
    if any(target.verdict == "missed" for target in bench.targets):
        bench.explain(f"pure update, {workload.name}", cases(ADAMW, workload)[PURE])  # type: ignore[arg-type]


def compare_each(bench: Bench) -> None:
    """All algorithms on one network."""
    for algorithm in ALGORITHMS:
        mode = f", {algorithm.mode}" if algorithm.mode else ""
        bench.compare(f"{algorithm.cls}{mode}, {models.MLP.name}", cases(algorithm, models.MLP), base=TORCH)


def whole_step(optimizer: Any, *, donate: bool) -> Callable[[], Any]:
    """Gradient and update of the GPT."""
    import helios_fn as hf

    loss_fn, params, buffers = models.pure_parts(models.GPT_SMALL)
    step = hf.make_step(loss_fn, optimizer)
    state, call = hf.init_state(params, optimizer, buffers=buffers), step.donating if donate else step
    batches = models.GPT_SMALL.cycle()

    def iteration() -> Any:
        nonlocal state
        state = call(state.replace(metrics={}), next(batches))
        return state

    return iteration


def compare_step(bench: Bench) -> None:
    """The adapted class within a whole training step."""
    from helios_fn import optim

    adapted = optim.from_torch(torch.optim.AdamW, lr=LEARNING_RATE, fused=True)
    names = {"step, adapted AdamW, pure": False, "step, adapted AdamW, donated": True}
    made: dict[str, Case] = {
        name: attempt(lambda donate=donate: whole_step(adapted, donate=donate)) for name, donate in names.items()
    }
    peer = {LOOP: attempt(lambda: loop(models.GPT_SMALL, fused=True))}
    timing = bench.compare(f"whole step, {models.GPT_SMALL.name}", {**peer, **made}, base=LOOP, chunk=0.1)
    for name in names:
        bench.target_ratio(f"{models.GPT_SMALL.name}: {name} / {LOOP}", timing, name, LOOP, at_most=1.08)
    if any(target.verdict == "missed" for target in bench.targets):
        made = cases(ADAMW, models.GPT_SMALL)
        updates = {name: made[name] for name in (TORCH, PURE, ADAPTED)}
        bench.in_situ(f"{models.GPT_SMALL.name}, the updates", loop(models.GPT_SMALL, fused=True), updates)  # type: ignore[arg-type]


def main() -> None:
    """Each part in a process of its own."""
    bench = Bench("optim", __doc__)
    parts: dict[str, Callable[[], None]] = {w.name: lambda w=w: compare_sizes(bench, w) for w in SIZES}  # type: ignore[misc]
    parts |= {EACH: lambda: compare_each(bench), STEP: lambda: compare_step(bench)}
    bench.in_parts(list(parts), lambda name: parts[name]())
    bench.finish()


if __name__ == "__main__":
    main()
