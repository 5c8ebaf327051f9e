"""Which context makes ordinary modules draw from a key: the choice between `scope` and `keyed`, made in one place."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from ..types import Key
from .keyed import keyed, unopened
from .keys import check_key
from .scope import scope

Draws: TypeAlias = Literal["scope", "keyed"]


def context(key: Key, draws: Draws) -> scope | keyed | unopened:
    """The context in which modules draw from ``key`` in the way that ``draws`` names.

    Where a scope is asked for and the key has no value yet (in a compiled region, under ``vmap`` over keys), the
    context lets pass what does not draw, and raises a TypeError where something does.
    """
    if draws == "keyed":
        return keyed(key)
    return scope(key) if _has_value(key) else unopened()


def _has_value(key: Key) -> bool:
    check_key(key)
    if torch.compiler.is_compiling():
        return False
    try:
        key.tolist()
    except RuntimeError:  # under vmap
        return False
    return True
