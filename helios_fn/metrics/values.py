"""Metrics of plain values: their mean, and how they are spread."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..types import Tree
from .base import Metric, added


def mean() -> Metric:
    """The mean of values, optionally weighted: ``mean()(losses)``, ``mean()(losses, weights)``.

    Values are of any shape, weights of the same, finite and not negative. Sums are in float64: the mean does not
    depend on the number of processes, and on the split into batches by rounding alone. A value of weight 0 has no
    part in it, whatever it is. The result is NaN where the total weight is 0.

    Raises:
        TypeError: (when called) the values are no tensors of numbers.
        ValueError: (when called) the weights have another shape, or one is negative or not finite.
    """
    made = _Mean()
    return Metric(made.init, made.update, added, made.compute)


def histogram(low: float, high: float, bins: int = 10) -> Metric:
    """How many values lie in each of ``bins`` equal parts of a range: ``histogram(0.0, 1.0)(values)``.

    The results: ``counts``, int64 ``[bins]``; ``edges``, float64 ``[bins + 1]``, of which a part has its left one in it
    and the last part both (as in ``numpy.histogram``); ``outside``, the number of values below, above and NaN.

    Raises:
        ValueError: the range is empty or its width not finite, or ``bins`` no integer of at least 1.
        TypeError: (when called) the values are no tensor of numbers.
    """
    if type(bins) is not int or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, got {bins!r}")
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"a histogram needs a finite range with low < high, got {low!r} to {high!r}")
    made = _Histogram(float(low), float(high), bins)
    return Metric(made.init, made.update, added, made.compute)


@dataclasses.dataclass(frozen=True)
class _Mean:
    def init(self) -> Tree:
        return {"sum": torch.zeros((), dtype=torch.float64), "weight": torch.zeros((), dtype=torch.float64)}

    def update(self, total: Tree, values: Any, weights: Any = None) -> Tree:
        values = _values(values)
        if weights is None:
            weight = torch.tensor(float(values.numel()), dtype=torch.float64)
            return {"sum": total["sum"] + values.sum(), "weight": total["weight"] + weight}
        weights = _values(weights)
        if weights.shape != values.shape:
            raise ValueError(f"weights must have the shape of the values, got {weights.shape} and {values.shape}")
        if not bool(((weights >= 0) & (weights < math.inf)).all()):
            raise ValueError("weights must be finite and not negative")
        # Not the product alone: 0 * NaN is NaN.
        parts = torch.where(weights == 0, 0.0, values * weights)
        return {"sum": total["sum"] + parts.sum(), "weight": total["weight"] + weights.sum()}

    def compute(self, total: Tree) -> float:
        return float(total["sum"] / total["weight"])


@dataclasses.dataclass(frozen=True)
class _Histogram:
    low: float
    high: float
    bins: int

    @property
    def edges(self) -> torch.Tensor:
        return torch.linspace(self.low, self.high, self.bins + 1, dtype=torch.float64)

    def init(self) -> Tree:
        return {"counts": torch.zeros(self.bins, dtype=torch.int64), "outside": torch.zeros((), dtype=torch.int64)}

    def update(self, total: Tree, values: Any) -> Tree:
        values = _values(values).reshape(-1)
        within = values[(values >= self.low) & (values <= self.high)]
        places = torch.bucketize(within, self.edges, right=True) - 1
        counts = torch.bincount(places.clamp(max=self.bins - 1), minlength=self.bins)
        outside = values.numel() - within.numel()
        return {"counts": total["counts"] + counts, "outside": total["outside"] + outside}

    def compute(self, total: Tree) -> dict[str, Any]:
        return {"counts": total["counts"], "edges": self.edges, "outside": int(total["outside"])}


def _values(values: Any) -> torch.Tensor:
    if not isinstance(values, torch.Tensor) or values.is_complex():
        raise TypeError(f"a metric of values takes tensors of real numbers, got {type(values).__name__}")
    return values.detach().cpu().double()  # on the CPU, for some accelerators have no float64
