"""What do eight members trained as one ensemble cost, against eight separate runs?

Eight MLPs of 26 thousand parameters with their own weights and keys, on the same batch. An iteration is one step of
all eight. The separate runs are measured in their fastest form and in the eager one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import models
from .harness import Bench, Case, attempt
from .models import LEARNING_RATE, MLP
from .step import loop

MEMBERS = 8
LOOPS, COMPILED_LOOPS = "8 loops by hand, fused AdamW", "8 loops by hand, torch.compile + fused"
EAGER, COMPILED = "8 of our steps, eager", '8 of our steps, compile="grad"'
MAPPED, ENSEMBLE = "hf.ensemble, eager", "hf.ensemble, compiled"


def parts() -> tuple[Any, Any, list[Any]]:
    """The loss, the optimiser, and the members' states."""
    import helios_fn as hf

    loss_fn, _, _ = models.pure_parts(MLP)
    optimizer = hf.optim.adamw(LEARNING_RATE)
    states = []
    for seed in range(MEMBERS):
        _, params, buffers = hf.functional(MLP.network, seed=seed)
        states.append(hf.init_state(params, optimizer, buffers=buffers, seed=seed))
    return loss_fn, optimizer, states


def separate_loops(*, compiled: bool = False) -> Callable[[], Any]:
    """Eight hand-written loops in turn."""
    loops = [loop(MLP, fused=True, compiled=compiled) for _ in range(MEMBERS)]
    return lambda: [iteration() for iteration in loops]


def separate_steps(**options: Any) -> Callable[[], Any]:
    """Our step on eight states in turn."""
    import helios_fn as hf

    loss_fn, optimizer, states = parts()
    step: Any = hf.make_step(loss_fn, optimizer, **options)
    batches = MLP.cycle()

    def iteration() -> Any:
        batch = next(batches)
        states[:] = [step.donating(state.replace(metrics={}), batch) for state in states]
        return states

    return iteration


def together(*, compiled: bool = False) -> Callable[[], Any]:
    """One mapped step on the stacked states."""
    import helios_fn as hf
    from helios_fn.ensemble import ensemble, stack

    loss_fn, optimizer, states = parts()
    mapped = ensemble(hf.make_step(loss_fn, optimizer))
    step: Any = hf.compile(mapped) if compiled else mapped
    state, batches = stack(states), MLP.cycle()

    def iteration() -> Any:
        nonlocal state
        state = step.donating(state.replace(metrics={}), next(batches))
        return state

    return iteration


def difference() -> float:
    """The largest difference between a member's weights and its separate run's, after ten steps of both."""
    from helios_fn.ensemble import unstack

    one, eight = together(compiled=True), separate_steps()
    for _ in range(10):
        state, states = one(), eight()
    members = unstack(state)
    return max(
        float((leaf - alone.params[name]).abs().max())
        for member, alone in zip(members, states, strict=True)
        for name, leaf in member.params.items()
    )


def main() -> None:
    """One table."""
    bench = Bench("ensemble", __doc__)
    makers: dict[str, Callable[[], Case]] = {LOOPS: separate_loops, EAGER: separate_steps, MAPPED: together}
    if not bench.quick:
        makers |= {
            COMPILED_LOOPS: functools.partial(separate_loops, compiled=True),
            COMPILED: functools.partial(separate_steps, compile="grad"),
            ENSEMBLE: functools.partial(together, compiled=True),
        }
    timing = bench.compare("8 MLPs, one step of each", {n: attempt(make) for n, make in makers.items()}, base=LOOPS)
    what = "8 members in one compiled ensemble / 8 separate runs, MLP"
    bench.target_ratio(what, timing, ENSEMBLE, LOOPS, at_most=0.33)
    what = "8 members in one compiled ensemble / 8 separate runs, compiled as well"
    bench.target_ratio(what, timing, ENSEMBLE, COMPILED)
    if ENSEMBLE in timing:
        bench.note(
            f"After 10 steps a member's weights differ by at most {difference():.1e} from its eager separate run's."
        )
    bench.finish()


if __name__ == "__main__":
    main()
