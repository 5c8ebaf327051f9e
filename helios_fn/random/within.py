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

_drawing: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""Functions that were seen to draw: an entry saves a second call, and changes no bit."""


def within(key: Key, function: Callable[..., T], /, *args: Any) -> T:
    """``function(*args)`` in ``scope(key)``, for a function that may be called twice.

    Many functions draw nothing, so the global generators are not seeded at first but watched. Where one of them was
    drawn from, all are put back and the function is called again in a `scope`, now and from then on; so the result
    is the same as in a `scope`, whatever the function draws.
    """
    if function not in _drawing:
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
        _drawing.add(function)
    with scope(key):
        return function(*args)


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
