"""`compile`: a hand-written step as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import tree
from .distributed import current
from .graph import whole_graph
from .state import TrainState, give_away
from .tracing import is_traced
from .types import Counters, Cursor, Step, Tree, Validation


def compile(step: Step, **options: Any) -> CompiledStep:
    """``step`` compiled into one graph for each shape of batch: the same function, faster.

    In the compiled region the values of tensors are unknown, and everything that changes along a run is a
    tensor: counters and cursor are int64, the bookkeeping of validation and Python scalars of the user's own
    state too. Keys come from `step_key` and `micro_keys` as always; draw inside ``hf.random.keyed(key)`` or with
    models made by ``functional(..., draws="keyed")``, for a scope cannot be opened there. The bits are the
    same in every run and across a resume, but not those of the step itself, whose kernels round differently.

    Args:
        step: ``step(state, batch) -> state``, from `make_step`, `ensemble` or written by hand.
        options: further keywords of ``torch.compile``, such as ``mode``, ``backend`` or ``dynamic=True`` for
            batches of many shapes.

    Raises:
        TypeError: ``step`` is not a function.
        NotTraceable: (when called) the step cannot be compiled into one graph; names the line.
    """
    if not callable(step):
        raise TypeError(f"compile() takes a function step(state, batch) -> state, got {tree.describe(step)}")
    return CompiledStep(step, options)


class CompiledStep:
    """What `compile` returns. ``donating(state, batch)`` may write the result into the memory of ``state``."""

    def __init__(self, step: Step, options: dict[str, Any]) -> None:
        self._step = step
        self._flatten = tree.Flattener()
        self.compile = "step"
        self._options = options
        # By the number of processes, too: what a graph does is fixed when it is made.
        self._regions: dict[tuple[bool, int], Callable[..., TrainState]] = {}

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """The next state; ``state`` stays as it is."""
        return self._run(state, batch, donate=False)

    def donating(self, state: TrainState, batch: Any) -> TrainState:
        """The next state; ``state`` is given away, see `MadeStep.donating`."""
        return self._run(state, batch, donate=True)

    def __repr__(self) -> str:
        return f"compile({self._step!r})"

    def _run(self, state: TrainState, batch: Any, *, donate: bool) -> TrainState:
        if is_traced():
            return self._step(state, batch)
        old, treespec = self._flatten(_own(state))
        scalars = {at for at, leaf in enumerate(old) if not isinstance(leaf, torch.Tensor)}
        given = _with_own(state, tree.unflatten(treespec, [_as_tensor(leaf) for leaf in old])) if scalars else state
        given = _with_tensors(given)
        if donate:
            give_away(state)
        new = self._graph(donate)(given, batch)
        if scalars:
            leaves, treespec = self._flatten(_own(new))
            new = _with_own(
                new,
                tree.unflatten(treespec, [leaf.item() if at in scalars else leaf for at, leaf in enumerate(leaves)]),
            )
        return new.replace(key=state.key, cursor=state.cursor, counters=state.counters, validation=state.validation)

    def _graph(self, donate: bool) -> Callable[..., TrainState]:
        kind = donate, current().size
        if kind not in self._regions:
            self._regions[kind] = whole_graph(_region(self._step, donate), self._options)
        return self._regions[kind]


def _region(step: Step, donate: bool) -> Callable[[TrainState, Any], TrainState]:
    def region(state: TrainState, batch: Any) -> TrainState:
        new = step(state, batch)
        if type(new) is not TrainState:
            raise TypeError("the step must return a TrainState: write `return state.replace(params=..., ...)`")
        if not donate:
            return new
        old = (state.params, state.opt_state, state.averages)
        params, opt_state, averages = tree.stored((new.params, new.opt_state, new.averages), old, donate=True)
        return new.replace(params=params, opt_state=opt_state, averages=averages)

    region.__name__ = getattr(step, "__name__", "step")
    return region


def _own(state: TrainState) -> Tree:
    """The fields that belong to the step, as opposed to the driver."""
    return state.params, state.buffers, state.opt_state, state.averages, state.extra


def _with_own(state: TrainState, own: Tree) -> TrainState:
    params, buffers, opt_state, averages, extra = own
    return state.replace(params=params, buffers=buffers, opt_state=opt_state, averages=averages, extra=extra)


def _with_tensors(state: TrainState) -> TrainState:
    """The state with the driver's numbers as tensors: constants of a graph are compiled anew when they change."""
    cursor, validation = state.cursor, state.validation
    phase, epoch, batch, iteration, micro_step, cycles, bad = torch.tensor(
        (*cursor[:3], *state.counters, validation.cycles, validation.bad_cycles)
    ).unbind()
    return state.replace(
        cursor=Cursor(phase, epoch, batch),  # type: ignore[arg-type]
        counters=Counters(iteration, micro_step),  # type: ignore[arg-type]
        validation=Validation({}, cycles, _as_tensor(validation.best), bad),  # type: ignore[arg-type]
        metrics={},
    )


def _as_tensor(leaf: Any) -> torch.Tensor:
    if isinstance(leaf, torch.Tensor):
        return leaf
    return torch.tensor(leaf, dtype=torch.float64) if isinstance(leaf, float) else torch.tensor(leaf)
