"""The bookkeeping of validation as one pure function of what was known and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..config import EarlyStop, Retention
from ..types import Validation


def record_validation(
    known: Validation, metrics: Any, early_stop: EarlyStop | None, retention: Retention | None = None
) -> Validation:
    """What is known after one more validation cycle.

    Args:
        known: what was known before.
        metrics: what ``validate`` returned: names to numbers or 0-d tensors.
        early_stop: which metric to watch, if any.
        retention: which metric the best checkpoints are kept by, if any.

    Raises:
        TypeError: ``metrics`` is no mapping of names to scalars.
        KeyError: the metric to watch is not among them.
        ValueError: the names are not those of the cycle before.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"validate must return a mapping of names to scalars, got {type(metrics).__name__}")
    values = {str(name): _scalar(name, value) for name, value in metrics.items()}
    if known.metrics and values.keys() != known.metrics.keys():
        raise ValueError(
            f"validate returned {sorted(values)} after {sorted(known.metrics)}: return the same names in every cycle"
        )
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    best, bad_cycles = known.best, known.bad_cycles
    for name, part in (("early_stop", early_stop), ("retention", retention)):
        if part is not None and part.monitor is not None and part.monitor not in values:
            raise KeyError(f"{name} watches {part.monitor!r}, but validate returned {', '.join(sorted(values))}")
    if early_stop is not None:
        new = values[early_stop.monitor]
        improved = early_stop.is_improvement(best, new)
        best, bad_cycles = (new, 0) if improved else (best, bad_cycles + 1)
    return Validation(tensors, known.cycles + 1, best, bad_cycles)


def _scalar(name: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"validate returned {name!r} = {value!r}, which is not a scalar") from error
