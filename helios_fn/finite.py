"""Non-finite values: how a step notices them, and what it means to pass over an iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import tree
from .finiteness import all_finite
from .state import TrainState


def mark_bad(first_bad: torch.Tensor, finite: bool | torch.Tensor, iteration: int | torch.Tensor) -> torch.Tensor:
    """The sticky leaf ``first_bad`` after an iteration: it remembers the first that was not finite."""
    if isinstance(finite, bool):
        return first_bad if finite or first_bad >= 0 else torch.full_like(first_bad, int(iteration))
    return torch.where((first_bad.to(finite.device) < 0) & ~finite, iteration, first_bad.to(finite.device))


def guard_finite(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Give a hand-written step the sticky leaf ``first_bad`` that ``non_finite`` policies read.

    Looks at the new parameters and at the metrics whose names end in ``loss``, since the gradients of
    a hand-written step are its own affair; other metrics may be NaN where there is nothing to tell.
    `make_step` does this by itself, with the gradients.

    Example:
        >>> def step(state, batch):
        ...     return state.replace(metrics={"loss": batch.sum()})
        ...
        >>> state = hf.init_state({"w": torch.zeros(1)})
        >>> hf.guard_finite(step)(state, torch.tensor([1.0])).first_bad.item()
        -1
        >>> hf.guard_finite(step)(state, torch.tensor([float("nan")])).first_bad.item()
        0
    """

    def guarded(state: Any, batch: Any) -> Any:
        new = step(state, batch)
        if not isinstance(new, TrainState):
            return new  # the driver's border says what is wrong with it
        losses = [value for name, value in new.metrics.items() if name.endswith("loss")]
        finite = all_finite([*tree.leaves(new.params), *losses])
        return new.replace(first_bad=mark_bad(new.first_bad, finite, state.counters.iteration))

    return guarded


def pass_over(state: TrainState, stepped: TrainState) -> TrainState:
    """The state after an iteration whose update is dropped: only what it wrote for the log remains."""
    return state.replace(metrics=stepped.metrics)
