"""Which states a step may overwrite: those that the driver made and nobody else can hold."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .. import tree
from ..config import RunConfig
from ..dtensors import local
from ..schedule import Horizon
from ..state import TrainState
from ..types import Cursor, Tree


class Donation:
    """Answers, before each iteration, whether the step may write the next state into the memory of the last.

    Never given away: the initial state, a state that was shown to somebody else's code or that is being saved, and
    one whose iteration may have to be passed over. With ``donate="auto"`` an iteration after which something is due
    keeps its input too: should that fail, the state before is saved, and the iteration done again.

    Args:
        cfg: ``donate`` and ``non_finite`` decide.
        step: donates if it has a method ``donating``.
        shown: whether every state is shown to somebody (a generator's reader, an observer, a predicate).
    """

    def __init__(self, cfg: RunConfig, step: Any, *, shown: bool) -> None:
        self._always = cfg.donate is True
        able = callable(getattr(step, "donating", None)) and cfg.non_finite != "skip"
        self._ever = able and (self._always or (cfg.donate == "auto" and not shown))
        self._kept: weakref.ref[TrainState] | None = None
        self._places: frozenset[int] | None = None

    def keep(self, state: TrainState) -> None:
        """Remember that somebody may hold ``state``: it stays as it is."""
        if self._ever:
            self._kept = weakref.ref(state)
            # All its leaves: a step may well make a parameter of what was in ``extra``.
            self._places = frozenset(_place(leaf) for leaf in tree.leaves(state)) - {0}

    def allows(self, before: TrainState, cursor: Cursor, look: Horizon) -> bool:
        """Whether the iteration that ends at ``cursor`` may overwrite ``before``; nothing is due before ``look``."""
        if not self._ever or (self._kept is not None and self._kept() is before):
            return False
        return self._always or (before.counters.iteration + 1 < look.iteration and cursor.epoch < look.epoch)

    def private(self, state: TrainState, *, again: bool = False) -> TrainState:
        """``state`` with copies of those leaves that it shares with the state that was kept last.

        A step may pass leaves on as they are (frozen parameters, all of them while gradients are only collected), so
        states that nobody holds may share memory with one that somebody does. After one copy the states that follow
        share nothing with it, but for what a step of the user's own had put aside in ``extra``. What an older kept
        state shares, the last one shares too.

        Args:
            state: about to be given away.
            again: look at the next state too, since a kept one is still being written to disk.
        """
        if self._places is None:
            return state
        places = self._places
        if not again:
            self._places = None
        params, opt_state, averages = tree.map(
            lambda leaf: leaf.clone() if _place(leaf) in places and isinstance(leaf, torch.Tensor) else leaf,
            _overwritten(state),
        )
        return state.replace(params=params, opt_state=opt_state, averages=averages)


def _overwritten(state: TrainState) -> Tree:
    """What a donating step may write to."""
    return state.params, state.opt_state, state.averages


def _place(leaf: Any) -> int:
    """Where the memory of a leaf begins; 0 for what has none of its own."""
    return local(leaf).untyped_storage().data_ptr() if isinstance(leaf, torch.Tensor) else 0
