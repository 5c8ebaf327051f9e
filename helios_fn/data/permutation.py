"""Keyed permutations of ``range(n)`` that can be read from any position at once.

Up to `TRUE_SHUFFLE_LIMIT` items the permutation is a true shuffle: an argsort of keyed random words,
uniform over all orders. Above it a generalised Feistel network over Z_a x Z_b with cycle walking
([Black and Rogaway 2002](https://web.cs.ucdavis.edu/~rogaway/papers/subset.pdf)) maps each position
by itself, so that no memory is needed and seeking costs the same at any position of any size. Small
sizes need the true shuffle, because a network with few inputs cannot reach all orders.

The values are a promise: checkpoints store positions, so another permutation for the same key would
silently change every resumed run. Golden tests pin them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import random
from ..types import Key

Indices: TypeAlias = npt.NDArray[np.int64]
Window: TypeAlias = Callable[[int, int], Indices]
"""``window(lo, hi)``: what stands at the positions ``lo`` to ``hi - 1``."""

TRUE_SHUFFLE_LIMIT = 65_536
ROUNDS = 8
READ_AHEAD = 16_384

_U64 = np.uint64
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_MULTIPLIER = _U64(0xD6E8_FEB8_6659_FD93)
_HALF = _U64(32)


def permutation(key: Key, n: int) -> Window:
    """The permutation of ``range(n)`` that belongs to ``key``, for reading windows of it."""
    if n <= TRUE_SHUFFLE_LIMIT:
        order = np.argsort(_words(key, n), kind="stable").astype(np.int64, copy=False)
        return lambda lo, hi: order[lo:hi]
    return _ReadAhead(Feistel(key, n))


def _words(key: Key, n: int) -> npt.NDArray[np.uint64]:
    """``n`` random words from NumPy's Philox4x64-10, whose stream NumPy keeps fixed across versions."""
    low, high = random.key_words(key)
    words: npt.NDArray[np.uint64] = np.random.Philox(key=(low & _MASK64) | (high & _MASK64) << 64).random_raw(n)
    return words


class Feistel:
    """A keyed bijection of ``range(n)`` that maps arrays of positions, each in constant time.

    The network permutes Z_a x Z_b with a and b near the square root of ``n``, which is hardly larger
    than ``n``; a result outside the range is mapped again until it falls inside. With fewer rounds
    neighbours stay correlated.
    """

    __slots__ = ("_a", "_b", "_keys", "n")

    def __init__(self, key: Key, n: int) -> None:
        self.n = _U64(n)
        side = max(2, math.isqrt(max(n - 1, 0)) + 1)
        self._a, self._b = _U64(side), _U64(max(2, -(-n // side)))
        self._keys = _words(key, ROUNDS)

    def __call__(self, positions: npt.ArrayLike) -> Indices:
        """The image of each position; all must be in ``range(n)``."""
        result = self._permute(np.asarray(positions, dtype=np.uint64))
        outside = np.flatnonzero(result >= self.n)
        while outside.size:
            walked = self._permute(result[outside])
            result[outside] = walked
            outside = outside[walked >= self.n]
        return result.view(np.int64)

    def _permute(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        # x = left + a * right; an even number of rounds brings the halves back to their own sides.
        right, left = np.divmod(x, self._a)
        for index, key in enumerate(self._keys):
            modulus = self._b if index % 2 else self._a
            left += _mix(right, key, modulus)
            np.subtract(left, modulus, out=left, where=left >= modulus)
            left, right = right, left
        return left + self._a * right


def _mix(x: npt.NDArray[np.uint64], key: np.uint64, modulus: np.uint64) -> npt.NDArray[np.uint64]:
    """A keyed hash of ``x`` into ``range(modulus)``; array arithmetic is modulo 2**64."""
    mixed = (x + key) * _MULTIPLIER
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLIER
    mixed >>= _HALF
    mixed *= modulus
    mixed >>= _HALF
    return mixed


class _ReadAhead:
    """Computes windows ahead of forward reading: an array operation costs the same for few positions."""

    __slots__ = ("_feistel", "_start", "_values")

    def __init__(self, feistel: Feistel) -> None:
        self._feistel = feistel
        self._start = 0
        self._values: Indices = np.empty(0, np.int64)

    def __call__(self, lo: int, hi: int) -> Indices:
        if not self._start <= lo <= hi <= self._start + len(self._values):
            end = min(max(hi, lo + READ_AHEAD), int(self._feistel.n))
            self._start, self._values = lo, self._feistel(np.arange(lo, end, dtype=np.uint64))
        return self._values[lo - self._start : hi - self._start]
