"""Non-finite values: how a step notices them, and what it means to pass over an iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import tree


def all_finite(leaves: Iterable[Any]) -> torch.Tensor:
    """Whether all floating tensors are free of NaN and infinities: a 0-d bool tensor on their device.

    The maximum norm is NaN or infinite exactly when an element is; a sum could overflow by itself.
    """
    floating = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel()]
    if not floating:
        return torch.ones((), dtype=torch.bool)
    return torch.stack(torch._foreach_norm(floating, ord=torch.inf)).isfinite().all()


def mark_bad(first_bad: torch.Tensor, finite: torch.Tensor, iteration: int) -> torch.Tensor:
    """The sticky leaf ``first_bad`` after an iteration: it remembers the first that was not finite."""
    if finite.device.type == "cpu" and not torch.compiler.is_compiling():
        # Reading a CPU flag costs nothing; three tiny kernels would.
        return first_bad if finite or first_bad >= 0 else torch.full_like(first_bad, iteration)
    return torch.where((first_bad.to(finite.device) < 0) & ~finite, iteration, first_bad.to(finite.device))


def guard_finite(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Give a hand-written step the sticky leaf ``first_bad`` that ``non_finite`` policies read.

    Looks at the new parameters and the metrics, since the gradients of a hand-written step are its
    own affair. `make_step` does this by itself, with the gradients.
    """

    def guarded(state: Any, batch: Any) -> Any:
        new = step(state, batch)
        finite = all_finite([*tree.leaves(new.params), *new.metrics.values()])
        return new.replace(first_bad=mark_bad(state.first_bad, finite, state.counters.iteration))

    return guarded


def pass_over(state: Any, stepped: Any) -> Any:
    """The state after an iteration whose update is dropped: only what it wrote for the log remains."""
    return state.replace(metrics=stepped.metrics)


def skip_non_finite(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Drop the update of every iteration whose loss or gradients are not finite.

    The step must set ``first_bad``: `make_step` does, `guard_finite` does it for hand-written ones. On
    an accelerator this reads one flag per iteration.
    """

    def skipping(state: Any, batch: Any) -> Any:
        stepped = step(state, batch)
        return stepped if int(stepped.first_bad) < 0 else pass_over(state, stepped)

    return skipping
