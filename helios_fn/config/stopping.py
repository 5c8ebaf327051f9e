"""When validation ends a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from .checks import check_choice, check_count


@dataclasses.dataclass(frozen=True, slots=True)
class EarlyStop:
    """Stop when a validation metric has not improved for ``cycles`` validation cycles in a row.

    Attributes:
        monitor: the name of the metric that ``validate`` returns.
        cycles: how many cycles without improvement end the run.
        mode: whether smaller (``"min"``) or larger (``"max"``) is better.
        min_delta: how much better counts as an improvement; not negative.
        improved: ``improved(best, new) -> bool`` replaces the comparison; ``mode`` still decides the
            first ``best`` (plus or minus infinity).
    """

    monitor: str
    cycles: int
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    improved: Callable[[float, float], bool] | None = None

    def __post_init__(self) -> None:
        check_count("EarlyStop.cycles", self.cycles)
        check_choice("EarlyStop.mode", self.mode, Literal["min", "max"])
        if not isinstance(self.monitor, str):
            raise TypeError(f"EarlyStop.monitor must be the name of a metric, got {self.monitor!r}")
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"EarlyStop.min_delta must be finite and not negative, got {self.min_delta!r}")
        if self.improved is not None and not callable(self.improved):
            raise TypeError(f"EarlyStop.improved must be a function of best and new, got {self.improved!r}")

    @property
    def worst(self) -> float:
        """The value that anything improves on."""
        return math.inf if self.mode == "min" else -math.inf

    def is_improvement(self, best: float, new: float) -> bool:
        """Whether ``new`` is better than ``best``. NaN never is."""
        if self.improved is not None:
            return bool(self.improved(best, new))
        return new < best - self.min_delta if self.mode == "min" else new > best + self.min_delta
