"""Other batches of a user's kind, and how each came about: some of its samples, and a few values changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import schedule, tree
from ..random import key as key_of
from ..types import MicroBatches

_MOST = 64  # values of a leaf to choose from


class Change(NamedTuple):
    """One element of a leaf: the leaf's number, the element's (modulo how many there are), and its new value."""

    leaf: int
    element: int
    value: Any


class Cut(NamedTuple):
    """A batch made of another one.

    Attributes:
        samples: the numbers of its samples.
        changes: made in order.
    """

    samples: Sequence[int]
    changes: Sequence[Change] = ()

    def of(self, batch: Any) -> Any:
        """This cut of ``batch``, in tensors of its own."""
        found, structure = tree.flatten(batch)
        leaves = [leaf[list(self.samples)] for leaf in found]  # a list of indices makes a copy
        for change in self.changes:
            leaf = leaves[change.leaf]
            leaf[_index(leaf, change.element)] = change.value
        return tree.unflatten(structure, leaves)

    def told(self, batch: Any) -> str:
        """In words that name the leaves."""
        paths, found = tree.paths(batch), self.of(batch)
        leaves = tree.leaves(found)
        numbers = ", ".join(map(str, self.samples[:12])) + (", ..." if len(self.samples) > 12 else "")
        words = [f"{len(self.samples)} sample{'s' * (len(self.samples) > 1)} ({numbers})"]
        for leaf, element, value in self.changes:
            at = ", ".join(map(str, _index(leaves[leaf], element)))
            words.append(f"{paths[leaf]}[{at}] = {value!r}")
        return ", ".join(words)


class Told(NamedTuple):
    """A batch, and how it came about."""

    batch: Any
    words: str


class Trial:
    """What to call a step on: a batch, and a state that some iterations lead to; shown in words.

    Args:
        batch: the batch, in words too.
        start: the state before those iterations.
        iterations: how many.
        seed: of the state's key in them and after; ``None`` leaves the key.
        usual: the batch to train on in them.
    """

    def __init__(
        self, batch: Told, start: Any, iterations: int = 0, seed: int | None = None, usual: Any = None
    ) -> None:
        self.batch = batch.batch
        self._words = batch.words
        self._start, self._iterations, self._seed, self._usual = start, iterations, seed, usual

    def state(self, step: Callable[[Any, Any], Any]) -> Any:
        """The state, by way of the step."""
        state = self._start if self._seed is None else self._start.replace(key=key_of(self._seed))
        for _ in range(self._iterations):
            state = _driven(step(state, self._usual), state, self._usual)
        return state

    def __repr__(self) -> str:
        words = [self._words]
        if self._iterations:
            words.append(f"after {self._iterations} iteration{'s' * (self._iterations > 1)}")
        if self._seed is not None:
            words.append(f"with seed {self._seed}")
        return ", ".join(words)


def cut_all(batch: Any, cuts: Sequence[Cut]) -> Told:
    """A batch with each of its micro-batches cut, or the one that it is."""
    pairs = [*zip(cuts, items_of(batch), strict=True)]
    made, told = tuple(cut.of(item) for cut, item in pairs), [cut.told(item) for cut, item in pairs]
    if isinstance(batch, MicroBatches):
        return Told(batch._replace(items=made), "micro-batches of " + " and of ".join(told))
    return Told(made[0], f"a batch of {told[0]}")


def items_of(batch: Any) -> tuple[Any, ...]:
    """The micro-batches of what a step receives, or the one batch."""
    return batch.items if isinstance(batch, MicroBatches) else (batch,)


def _driven(after: Any, before: Any, batch: Any) -> Any:
    """What a step has given, as the driver hands it to the next call."""
    counters = schedule.advance(before.counters, batch.count if isinstance(batch, MicroBatches) else 1)
    return after.replace(counters=counters, metrics={}, key=before.key)


class Choice(NamedTuple):
    """The values that an element of a leaf may be changed to.

    Attributes:
        leaf: its number.
        values: some that it holds, in order.
        between: whether any from the first to the last of them will do.
    """

    leaf: int
    values: Sequence[Any]
    between: bool


def changeable(batch: Any) -> list[Choice]:
    """The leaves in which an element may be changed.

    To any value between for floats that are no whole numbers; classes, tokens and masks stay among those there are.
    """
    found = [_values(number, leaf) for number, leaf in enumerate(tree.leaves(batch))]
    return [each for each in found if each is not None]


def _values(number: int, leaf: Any) -> Choice | None:
    try:
        array = leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf
        if isinstance(array, torch.Tensor):
            array = (array.double() if array.is_floating_point() else array).numpy()
    except (RuntimeError, TypeError):
        return None  # sparse, quantised, conjugate
    if array.dtype.kind not in "fiub" or not array.size or not np.isfinite(array).all():
        return None
    held = np.unique(array)
    some = held[np.linspace(0, len(held) - 1, min(len(held), _MOST)).astype(int)]
    return Choice(number, some.tolist(), between=array.dtype.kind == "f" and bool((some != np.round(some)).any()))


def _index(leaf: Any, element: int) -> tuple[int, ...]:
    count = int(np.prod(leaf.shape))
    return tuple(int(each) for each in np.unravel_index(element % count, tuple(leaf.shape)))
