"""The results of evaluated batches, row by row, and what they come to: the same bits whoever evaluated which."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from .. import tree
from ..distributed import World
from ..metrics import Measured
from ..metrics.base import form_of, is_exact, results
from ..types import Aux
from .packing import gathered, said_by_all, told


class Table:
    """One row for each batch, in the order of the batches: its weight and its metrics, in float64.

    Beside it the totals of the metrics that were `Measured`: one for each batch, merged in the order of the batches at
    the end; those that are merged without rounding are merged at once.
    """

    def __init__(self) -> None:
        self._names: list[str] | None = None
        self._rows: list[list[float]] = []
        self._weighs = False
        self._measured: dict[str, list[Measured]] = {}

    def add(self, aux: Aux) -> None:
        """Append the row of the next batch.

        Raises:
            ValueError: its metrics have other names than those before, or its weight is negative or not finite; or a
                metric was measured with another total.
            TypeError: a metric is neither a scalar nor `Measured`.
        """
        given = aux.metrics or {}
        measured = {name: value for name, value in given.items() if isinstance(value, Measured)}
        metrics = {name: _number(name, value) for name, value in given.items() if name not in measured}
        weight = float(aux.weight)
        if not 0 <= weight < math.inf:
            raise ValueError(f"Aux.weight must count samples or tokens, got {weight}")
        # A batch without weight says nothing, so its metrics may be others, or none.
        if not self._weighs:
            self._set_names(sorted(metrics))
            self._measured = {name: [] for name in sorted(measured)}
        elif weight and (sorted(metrics), sorted(measured)) != (self._names, list(self._measured)):
            raise ValueError(f"eval_fn returned metrics {sorted(given)} after {self.names}")
        self._weighs = self._weighs or weight > 0
        assert self._names is not None
        self._rows.append([weight, *(metrics.get(name, 0.0) for name in self._names)])
        if weight:
            for name, value in measured.items():
                self._measure(name, value)

    @property
    def names(self) -> list[str]:
        """The names of all metrics."""
        return sorted([*(self._names or ()), *self._measured])

    @property
    def weighs(self) -> bool:
        """Whether any batch so far had a weight."""
        return self._weighs

    def results(self, world: World | None = None) -> dict[str, Any]:
        """What the metrics come to: weighted means of scalars, and what was computed of totals.

        Args:
            world: the processes that hold consecutive parts of the table; the results are the same on each of them.

        Raises:
            ValueError: the total weight is 0, or processes found metrics of other names.
            TypeError: a metric computed no results.
        """
        if world is None or world.size == 1:
            return {**self.mean(), **self._computed()}
        leader, whole = self._of_all(world)
        means = whole.mean()
        # Processes without a batch do not know the metrics: one that does tells the results.
        return {**means, **_shared(whole._computed(), world, leader)}

    def mean(self) -> dict[str, float]:
        """The weighted mean of each scalar metric, summed in the order of the batches.

        Raises:
            ValueError: the total weight is 0.
        """
        totals = [0.0] * len(self._names or ())
        weights = 0.0
        for weight, *values in self._rows:
            if weight:
                totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
            weights += weight
        if not weights:
            raise ValueError("the total weight of the evaluation is 0: Aux.weight must count samples or tokens")
        return {name: total / weights for name, total in zip(self._names or (), totals, strict=True)}

    def _measure(self, name: str, value: Measured) -> None:
        value = Measured(value.metric, tree.map(_on_cpu, value.total))
        form = form_of(value.total)
        before = self._measured[name]
        if not before:
            before.append(value)
        elif is_exact(value.total):
            before[0] = before[0].merge(value)
        elif form_of(before[0].total) == form:
            before.append(value)
        else:
            before[0].merge(value)  # says what differs

    def _computed(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, parts in self._measured.items():
            found.update(results(name, functools.reduce(Measured.merge, parts).compute()))
        return found

    def _of_all(self, world: World) -> tuple[int, Table]:
        """The table of the batches of all processes, and the first rank that knows its metrics.

        Processes that do not know them (for they had no batch that weighs) get a table without totals.
        """
        counts = {name: len(parts) for name, parts in self._measured.items()}
        mine: Any = [len(self._rows), self._names, self._weighs, counts]
        heads: list[Any] = said_by_all(mine, world)
        known = [rank for rank, (_, _, weighs, _) in enumerate(heads) if weighs]
        leader = known[0] if known else 0
        _, names, _, first = heads[leader]
        for rank in known:
            if (heads[rank][1], list(heads[rank][3])) != (names, list(first)):
                what = [sorted([*heads[each][1], *heads[each][3]]) for each in known]
                raise ValueError(f"eval_fn returned metrics {what[0]} for some batches and others elsewhere: {what}")
        whole = Table()
        whole._names = names or []
        if not known:
            return leader, whole
        if not self._weighs:
            self._set_names(names)
        width = 1 + len(names)
        flat = torch.tensor(self._rows, dtype=torch.float64).reshape(-1)
        parts = world.gather(flat, [rows * width for rows, *_ in heads])
        whole._rows = [row for part in parts for row in part.reshape(-1, width).tolist()]
        if first:
            whole._measured = self._measured_by(
                world, [heads[rank][3] if rank in known else {} for rank in range(world.size)]
            )
        return leader, whole

    def _measured_by(self, world: World, counts: list[dict[str, int]]) -> dict[str, list[Measured]]:
        """The totals of all processes, in the order of the batches; none where this process does not know them."""
        totals = [part.total for parts in self._measured.values() for part in parts] if self._weighs else []
        everywhere = gathered([leaf for total in totals for leaf in tree.leaves(total)], world)
        if not self._weighs:
            return {}
        found: dict[str, list[Measured]] = {name: [] for name in self._measured}
        for leaves, count in zip(everywhere, counts, strict=True):
            remaining = iter(leaves)
            for name, number in count.items():
                like = self._measured[name][0]
                structure = tree.structure(like.total)
                for _ in range(number):
                    total = tree.unflatten(structure, [next(remaining) for _ in range(structure.num_leaves)])
                    found[name].append(Measured(like.metric, total))
        return found

    def _set_names(self, names: list[str]) -> None:
        self._names = names
        self._rows = [[0.0] * (1 + len(names)) for _ in self._rows]  # those before had no weight


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric {name!r} of eval_fn must be a scalar, or a metric called on the batch, such as "
            f"hf.metrics.accuracy()(scores, labels); got {tree.describe(value)}"
        ) from error


def _on_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf


def _shared(found: dict[str, Any], world: World, leader: int) -> dict[str, Any]:
    """The results of one process, in all of them."""
    mine: Any = {name: None if isinstance(value, torch.Tensor) else value.hex() for name, value in found.items()}
    numbers: Any = world.tell_all(mine, leader)
    tensors = [value for value in found.values() if isinstance(value, torch.Tensor)]
    wholes = iter(told(tensors, world, leader))
    return {name: next(wholes) if said is None else float.fromhex(said) for name, said in numbers.items()}
