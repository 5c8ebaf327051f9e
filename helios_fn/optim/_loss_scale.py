"""A dynamic loss scale in the optimiser's state: gradients in float16 without underflow."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from .. import tree
from ..finiteness import all_finite
from ..tracing import is_traced
from ..types import Tree
from .base import Optimizer
from .checks import number, whole
from .wrapping import checked_optimizer, keywords

SMALLEST = 2.0**-14
"""A scale below it says that the gradients themselves are not finite, whatever they are multiplied by."""


class LossScaleState(NamedTuple):
    """The inner state; the scale of the next loss (float32), the updates since it changed (int32), and how many were
    skipped in all (int64). The three are 0-d, on the CPU."""

    inner: Tree
    scale: torch.Tensor
    growth: torch.Tensor
    skipped: torch.Tensor

    def is_usable(self) -> bool | torch.Tensor:
        """Whether the scale is large enough for an overflow to have been its fault; traced, a 0-d bool tensor."""
        return (self.scale if is_traced() else self.scale.item()) >= SMALLEST


def loss_scaled(
    optimizer: Optimizer,
    *,
    init_scale: float = 2.0**16,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
) -> Optimizer:
    """``optimizer`` with a dynamic loss scale in its state, for training in float16.

        optimizer = loss_scaled(chain(clip_by_global_norm(1.0), adamw(3e-4)))
        step = make_step(loss_fn, optimizer, precision="fp16")
        state = init_state(params, optimizer, buffers=buffers)

    The step multiplies its loss by the scale, and the gradients by its reciprocal, before anybody sees them. Where one
    is not finite the scale was too large: no update is made, count and all inner memory stay as they are (schedules
    and averages rest too), and the scale is multiplied by ``backoff_factor``. After ``growth_interval`` updates
    without that it is multiplied by ``growth_factor``. These are the rules, the defaults and the bits of
    ``torch.amp.GradScaler``. It is decided on the gradients of the whole iteration, of all micro-batches and processes.

    Such an overflow is no fault: ``first_bad`` and the policy of `RunConfig` for values that are not finite do not
    hear of it. A loss that is not finite itself is one, and so is an overflow at a scale that falls below
    ``2**-14``, for then the gradients are not finite at any scale.

    ``monitor`` adds ``loss_scale``, that of the next iteration, and ``skipped_updates``. Put transforms inside, so that
    they do not see what overflowed; around it go `every`, with which one update is skipped or made for all its
    calls, and `chain`. Inside of `groups` nobody would find it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``init_scale`` is below ``2**-14``, ``growth_factor`` not above 1, ``backoff_factor`` not
            between 0 and 1, or ``growth_interval`` below 1.
    """
    number("init_scale", init_scale, low=SMALLEST, high=torch.finfo(torch.float32).max)
    if number("growth_factor", growth_factor) <= 1:
        raise ValueError(f"growth_factor must be above 1, got {growth_factor!r}")
    if not 0 < number("backoff_factor", backoff_factor) < 1:
        raise ValueError(f"backoff_factor must be between 0 and 1, got {backoff_factor!r}")
    made = _LossScaled(
        checked_optimizer("loss_scaled", optimizer),
        float(init_scale),
        float(growth_factor),
        float(backoff_factor),
        whole("growth_interval", growth_interval),
    )
    return Optimizer(made.init, made.update, made.count, made.monitor)


def loss_scale(opt_state: Tree) -> LossScaleState | None:
    """The part of an optimiser's state that `loss_scaled` made, or ``None``.

    Looked for in what stands around it: `chain`, `every` and other wrappers.

    Example:
        >>> optimizer = hf.optim.every(4, hf.optim.loss_scaled(hf.optim.adamw(1e-3)))
        >>> hf.optim.loss_scale(optimizer.init({"w": torch.zeros(3)})).scale
        tensor(65536.)
    """
    if isinstance(opt_state, LossScaleState):
        return opt_state
    if isinstance(opt_state, tuple):
        for part in opt_state:
            # Not a call for every leaf: a step asks this in each iteration.
            found = loss_scale(part) if isinstance(part, tuple) else None
            if found is not None:
                return found
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _LossScaled:
    optimizer: Optimizer
    init_scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    flatten: tree.Flattener = dataclasses.field(default_factory=tree.Flattener, compare=False)

    def init(self, params: Tree) -> LossScaleState:
        scale = torch.tensor(self.init_scale, dtype=torch.float32, device="cpu")
        growth, skipped = (torch.zeros((), dtype=dtype, device="cpu") for dtype in (torch.int32, torch.int64))
        return LossScaleState(self.optimizer.init(params), scale, growth, skipped)

    def update(
        self, grads: Tree, state: LossScaleState, params: Tree, *, weight: Any = 1.0, donate: bool = False
    ) -> tuple[Tree, LossScaleState]:
        leaves, treespec = self.flatten(grads)
        finite = all_finite(leaves)
        if is_traced() and isinstance(finite, torch.Tensor):
            # Zeros instead: where the update is not selected, NaN would still reach derivatives.
            grads = tree.unflatten(treespec, [torch.where(finite, leaf, 0) for leaf in leaves])
            return self._selected(finite, grads, state, params, weight, donate)
        if not finite:
            return params, self._smaller(state)
        params, inner = self.optimizer.update(grads, state.inner, params, **keywords(weight, donate))
        return params, self._longer(state)._replace(inner=inner)

    def _selected(
        self, finite: torch.Tensor, grads: Tree, state: LossScaleState, params: Tree, weight: Any, donate: bool
    ) -> tuple[Tree, LossScaleState]:
        new, inner = self.optimizer.update(grads, state.inner, params, weight=weight)
        updated = new, self._longer(state)._replace(inner=inner)
        found = tree.select(finite, updated, (params, self._smaller(state)))
        params, after = tree.stored(found, (params, state), donate=donate)
        return params, after

    def _smaller(self, state: LossScaleState) -> LossScaleState:
        """After an overflow."""
        scale = (state.scale.double() * self.backoff_factor).float()
        return LossScaleState(state.inner, scale, torch.zeros_like(state.growth), state.skipped + 1)

    def _longer(self, state: LossScaleState) -> LossScaleState:
        """After an update."""
        growth = state.growth + 1
        if not is_traced() and growth.item() < self.growth_interval:
            return state._replace(growth=growth)
        larger = (state.scale.double() * self.growth_factor).float()
        due = growth >= self.growth_interval
        scale = torch.where(due & larger.isfinite(), larger, state.scale)
        return state._replace(scale=scale, growth=torch.where(due, 0, growth))

    def count(self, state: LossScaleState) -> Any:
        return self.optimizer.count(state.inner)

    def monitor(self, state: LossScaleState) -> dict[str, Any]:
        read = torch.Tensor.double if is_traced() else float
        return {
            **self.optimizer.monitor(state.inner),
            "loss_scale": read(state.scale),
            "skipped_updates": read(state.skipped),
        }

    def __repr__(self) -> str:
        names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval")
        return f"loss_scaled({self.optimizer!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
