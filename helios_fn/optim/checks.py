"""Checks of the arguments that users give; each returns the value it accepts."""

from __future__ import annotations

import math
from typing import Any, get_args


def number(name: str, value: Any, *, low: float = -math.inf, below: float = math.inf, high: float = math.inf) -> float:
    """A finite number in ``[low, below)`` and at most ``high``, as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and low <= value < below and value <= high):
        if below < math.inf:
            wanted = f"at least {low:g} and less than {below:g}"
        elif high < math.inf:
            wanted = f"finite and at most {high:g}"
        else:
            wanted = "finite" if low == -math.inf else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite number above zero, as a float."""
    if number(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return float(value)


def decays(name: str, value: Any) -> tuple[float, float]:
    """Two numbers in ``[0, 1)``."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, got {value!r}")
    first, second = (number(f"{name}[{i}]", part, low=0, below=1) for i, part in enumerate(value))
    return first, second


def whole(name: str, value: Any, *, low: int = 1) -> int:
    """An integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return value


def flag(name: str, value: Any) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def choice(name: str, value: Any, options: Any) -> Any:
    """One of the values of a ``Literal``."""
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, got {value!r}")
    return value
