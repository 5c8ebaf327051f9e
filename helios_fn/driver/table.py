"""The results of evaluated batches, row by row, and their mean: the same bits whoever evaluated which of them."""

from __future__ import annotations

from typing import Any

import torch

from ..distributed import World
from ..types import Aux


class Table:
    """One row for each batch, in the order of the batches: its weight and its metrics, in float64."""

    def __init__(self) -> None:
        self._names: list[str] | None = None
        self._rows: list[list[float]] = []
        self._weighs = False

    def add(self, aux: Aux) -> None:
        """Append the row of the next batch.

        Raises:
            ValueError: its metrics have other names than those before, or its weight is negative or NaN.
        """
        metrics = {name: float(value) for name, value in (aux.metrics or {}).items()}
        weight = float(aux.weight)
        if not weight >= 0:
            raise ValueError(f"Aux.weight must count samples or tokens, got {weight}")
        # A batch without weight says nothing, so its metrics may be others, or none.
        if not self._weighs:
            self._set_names(sorted(metrics))
        elif weight and sorted(metrics) != self._names:
            raise ValueError(f"eval_fn returned metrics {sorted(metrics)} after {self._names}")
        self._weighs = self._weighs or weight > 0
        assert self._names is not None
        self._rows.append([weight, *(metrics.get(name, 0.0) for name in self._names)])

    def of_all(self, world: World) -> Table:
        """The table of the batches of all processes, which hold consecutive parts of it; the same on each of them."""
        if world.size == 1:
            return self
        mine: Any = [len(self._rows), self._names]
        heads: list[Any] = [world.tell_all(mine, rank) for rank in range(world.size)]
        known = [names for rows, names in heads if rows]
        if any(names != known[0] for names in known):
            raise ValueError(f"eval_fn returned metrics {known[0]} for some batches and others elsewhere: {known}")
        width = 1 + len(known[0])
        flat = torch.tensor(self._rows, dtype=torch.float64).reshape(-1)
        parts = world.gather(flat, [rows * width for rows, _ in heads])
        whole = Table()
        whole._names = known[0]
        whole._rows = [row for part in parts for row in part.reshape(-1, width).tolist()]
        return whole

    def mean(self) -> dict[str, float]:
        """The weighted mean of each metric, summed in the order of the batches.

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

    def _set_names(self, names: list[str]) -> None:
        self._names = names
        self._rows = [[0.0] * (1 + len(names)) for _ in self._rows]  # those before had no weight
