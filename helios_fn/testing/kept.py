"""What a job keeps in its process: Python objects that its code can reach, before and after it runs."""

from __future__ import annotations

import collections
import functools
import itertools
import random as python_random
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from .digests import leaf_digests
from .reach import Reach

Kept: TypeAlias = Mapping[str, collections.Counter[str]]
"""For each place in words, values that change when something is written there; objects of a class share their words."""

_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, np.ndarray, np.generic)
_DEEP = 4
_LONG = 1000
_COUNTERS = (itertools.count, itertools.cycle, collections.Counter)


def kept(found: Reach) -> Kept:
    """The present contents of all places."""
    contents: dict[str, collections.Counter[str]] = {}
    for where, value in found.places:
        contents.setdefault(where, collections.Counter())[_print(value, _DEEP)] += 1
    return contents


def changes(before: Kept, after: Kept) -> list[str]:
    """The places that changed, in words. That there are more objects of a class than before is no change."""
    return [where for where, values in before.items() if not values <= after.get(where, values)]


def _print(value: Any, deep: int) -> str:
    state = _generator_state(value)
    if state is not None:
        return f"{type(value).__name__} {hash(state)}"
    if isinstance(value, _SCALARS):
        return leaf_digests(value)[""] if value is not None else "None"
    if isinstance(value, functools._lru_cache_wrapper):
        return str(value.cache_info().currsize)
    if isinstance(value, _COUNTERS):
        return repr(value)
    if isinstance(value, dict | list | tuple | set | frozenset | collections.deque) and deep > 0:
        if isinstance(value, dict):
            parts = [
                f"{_print(key, 0)}: {_print(item, deep - 1)}" for key, item in itertools.islice(value.items(), _LONG)
            ]
        else:
            parts = [_print(item, deep - 1) for item in itertools.islice(value, _LONG)]
        return f"{len(value)} {parts}"
    if hasattr(value, "tell") and not getattr(value, "closed", True):
        return f"at {value.tell()}"
    return type(value).__qualname__  # what it holds is looked at where its attributes are


def _generator_state(value: Any) -> bytes | None:
    """The state of a random number generator; ``None`` if it is none."""
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().numpy())
    if isinstance(value, python_random.SystemRandom):
        return None
    if isinstance(value, python_random.Random):
        return repr(value.getstate()).encode()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state).encode()
    return repr(value.get_state()).encode() if isinstance(value, np.random.RandomState) else None
