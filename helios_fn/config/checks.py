"""Checks of single values, for the parts of a configuration."""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any, get_args

from ..types import Json


def check_count(name: str, value: Any, remark: str = "") -> None:
    """Refuse what is no integer of at least 1; raises ValueError."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1{remark}, got {value!r}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse what is not among the values of a ``Literal``; raises ValueError."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_portion(name: str, value: Any) -> None:
    """Refuse what is neither a number of batches nor a fraction of them (nor ``None``); raises ValueError."""
    if value is None or (type(value) is int and value >= 1) or (type(value) is float and 0.0 < value <= 1.0):
        return
    raise ValueError(
        f"{name} must be a number of batches (an int of at least 1) or a fraction in (0, 1], got {value!r}"
    )


def seconds_of(name: str, value: Any) -> float:
    """A duration in seconds, infinite for ``None``.

    Raises:
        TypeError: it is neither a number nor a ``timedelta``.
        ValueError: it is not positive, or not finite.
    """
    if value is None:
        return math.inf
    seconds = value.total_seconds() if isinstance(value, datetime.timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, a datetime.timedelta or None, got {value!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a positive, finite number of seconds, got {value!r}")
    return float(seconds)


def plain(value: Any) -> Json:
    """A value of a configuration as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # strict JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return getattr(value, "__qualname__", None) or str(value)
