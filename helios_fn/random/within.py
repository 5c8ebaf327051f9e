"""`within`: call a function in a scope, at a fraction of the cost of a `scope` where it draws nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from ..types import Key
from . import ambient
from .derive import Words
from .innermost import opened
from .keys import key_words
from .scope import scope

T = TypeVar("T")


def _nothing() -> None:
    """What `_latest` is while no function is known to be quiet."""


# What was seen of functions so far. It decides the cost of a call, and no bit of its result.
_quiet: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
_drawing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
_latest: Callable[[], Callable[..., Any] | None] = _nothing  # the quiet one that a run calls again and again


def within(key: Key, function: Callable[..., T], /, *args: Any) -> T:
    """``function(*args)`` in ``scope(key)``, for a pure function.

    Many functions draw nothing. Where the first call of one did not, the global generators are not seeded any more but
    watched: should a later call draw from one of them, all are put back and the function is called again in a
    `scope`. So the result is the same as in a `scope`, whatever the function draws.
    """
    before = ambient.glance() if _latest() is function or function in _quiet else None
    if before is None:
        return _seeded(key, function, args)
    outer, opened.innermost = opened.innermost, _Watched(key)
    try:
        result = function(*args)
    except Exception:
        if ambient.still_holds(before):
            raise
    else:
        if ambient.still_holds(before):
            return result
    finally:
        opened.innermost = outer
    ambient.put_back(before)
    _note(function, draws=True)
    return _seeded(key, function, args)


def _seeded(key: Key, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    with scope(key):
        before = None if function in _drawing else ambient.glance()
        result = function(*args)
        if before is not None:
            _note(function, draws=not ambient.still_holds(before))
        return result


def _note(function: Callable[..., Any], *, draws: bool) -> None:
    global _latest
    if draws:
        _quiet.discard(function)
        _drawing.add(function)
        _latest = _nothing
    else:
        _quiet.add(function)
        _latest = weakref.ref(function)


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


class _Watched:
    """What `helios_fn.random.numpy` finds while generators are watched: the key, read when it is needed."""

    __slots__ = ("_key", "_numpy")

    def __init__(self, key: Key) -> None:
        self._key = key
        self._numpy: np.random.Generator | None = None

    @property
    def _words(self) -> Words:
        return key_words(self._key)
