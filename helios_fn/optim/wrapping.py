"""What wrappers of optimisers share: their argument, and the keywords they pass on."""

from __future__ import annotations

from typing import Any

from .base import Optimizer, Transform, hint
from .text import brief


def checked_optimizer(name: str, optimizer: Any) -> Optimizer:
    """``optimizer``, given to ``name()``.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    remedy = ": chain it with an optimiser" if isinstance(optimizer, Transform) else hint(optimizer)
    raise TypeError(f"{name}() wraps an Optimizer, got {brief(optimizer)}{remedy}")


def keywords(weight: Any, donate: bool) -> dict[str, Any]:
    """The keywords of an inner ``update``; an optimiser from elsewhere need not know ``donate``."""
    return {"weight": weight, "donate": True} if donate else {"weight": weight}
