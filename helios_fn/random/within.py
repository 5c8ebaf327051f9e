"""`within`: call a function in a scope, at a fraction of the cost of a `scope` where it draws nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from ..types import Key
from . import ambient
from .ambient import Ambient
from .derive import Words
from .innermost import opened
from .keys import key_words
from .scope import scope

T = TypeVar("T")

# What was seen of functions so far. It decides the cost of a call, and no bit of its result.
_quiet: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
_drawing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def within(key: Key, function: Callable[..., T], /, *args: Any) -> T:
    """``function(*args)`` in ``scope(key)``, for a pure function.

    Many functions draw nothing. Where the first call of one did not, the global generators are not seeded any more but
    watched: should a later call draw from one of them, all are put back and the function is called again in a
    `scope`. So the result is the same as in a `scope`, whatever the function draws.
    """
    if function not in _quiet:
        return _seeded(key, function, args)
    before = ambient.capture()
    try:
        with _Watch(key):
            result = function(*args)
    except Exception:
        if _untouched(before):
            raise
    else:
        if _untouched(before):
            return result
    ambient.restore(before)
    _quiet.discard(function)
    _drawing.add(function)
    return _seeded(key, function, args)


def _seeded(key: Key, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    with scope(key):
        if function in _drawing:
            return function(*args)
        before = ambient.capture()
        result = function(*args)
        (_quiet if _untouched(before) else _drawing).add(function)
        return result


class torch_scope(scope):  # noqa: N801 - used like a function
    """A `scope` that seeds torch's generators, with the same draws, and leaves the others alone."""

    __slots__ = ("_torch",)

    def __enter__(self) -> Self:
        self._torch = ambient.capture_torch()
        ambient.seed_torch(self._words)
        self._outer, opened.innermost = opened.innermost, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened.innermost = self._outer
        ambient.restore_torch(self._torch)
        self._outer = self._numpy = None


class _Watch:
    """What `helios_fn.random.numpy` finds while generators are watched: the key, read when it is needed."""

    __slots__ = ("_key", "_numpy", "_outer")

    def __init__(self, key: Key) -> None:
        self._key = key
        self._numpy: np.random.Generator | None = None

    @property
    def _words(self) -> Words:
        return key_words(self._key)

    def __enter__(self) -> None:
        self._outer, opened.innermost = opened.innermost, self

    def __exit__(self, *exception: object) -> None:
        opened.innermost = self._outer


def _untouched(before: Ambient) -> bool:
    """Whether the global generators are as they were. Where that cannot be seen at once, the answer is no."""
    now = ambient.capture()
    if len(before.cuda) != len(now.cuda) or now.numpy.official is not None:
        return False
    same_torch = all(map(torch.equal, (before.torch, *before.cuda), (now.torch, *now.cuda)))
    return same_torch and before.python == now.python and before.numpy == now.numpy
