"""Philox4x32-10: the one function that keys and portable draws are made of, in three forms.

A block maps a counter of four 32-bit words and a key of two to four random words. The forms agree bit
for bit: Python integers (one block, no overhead), NumPy (many blocks on the host) and torch (the same
bits eager, compiled, under ``vmap`` and on any device).

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011
(https://doi.org/10.1145/2063384.2063405); known answers from https://github.com/DEShawResearch/random123.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch

Block: TypeAlias = tuple[int, int, int, int]

MASK32 = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LANES = np.array(_MULTIPLIERS, np.uint64)[:, None]
_LOW, _HALF = np.uint64(MASK32), np.uint64(32)


@functools.lru_cache(maxsize=1024)
def _round_keys(k0: int, k1: int) -> tuple[tuple[int, int], ...]:
    # Cached since most blocks share their key with an earlier one: siblings have one parent.
    return tuple(((k0 + i * _WEYL[0]) & MASK32, (k1 + i * _WEYL[1]) & MASK32) for i in range(_ROUNDS))


def philox_int(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> Block:
    """One block on Python integers in [0, 2**32)."""
    m0, m1 = _MULTIPLIERS
    for r0, r1 in _round_keys(k0, k1):
        p0 = m0 * c0
        p1 = m1 * c2
        c0 = (p1 >> 32) ^ c1 ^ r0
        c1 = p1 & 0xFFFFFFFF
        c2 = (p0 >> 32) ^ c3 ^ r1
        c3 = p0 & 0xFFFFFFFF
    return c0, c1, c2, c3


def philox_numpy(
    c0: np.ndarray, c1: np.ndarray, c2: np.ndarray | int, c3: np.ndarray | int, k0: int, k1: int
) -> np.ndarray:
    """Blocks of one key: counters of shape (n,) or integers, words in [0, 2**32), give uint32 of shape (n, 4)."""
    result = np.empty((len(c0), 4), np.uint32)
    for column, words in enumerate(philox_words(c0, c1, c2, c3, k0, k1)):
        result[:, column] = words
    return result


def philox_words(
    c0: np.ndarray,
    c1: np.ndarray,
    c2: np.ndarray | int,
    c3: np.ndarray | int,
    k0: np.ndarray | int,
    k1: np.ndarray | int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`philox_numpy` as four arrays of shape (n,), one for each word of the blocks: uint64 in [0, 2**32).

    The key may differ from block to block: arrays (uint64) that broadcast to shape (n,).
    """
    # Both multiplications of a round are one NumPy call on two lanes: for small n the calls are the cost.
    even, odd = np.empty((2, 2, len(c0)), np.uint64)
    even[0], odd[0], even[1], odd[1] = c0, c1, c2, c3
    product = np.empty_like(even)
    crossed = product[::-1]
    for round_key in _round_keys_numpy(k0, k1):
        np.multiply(even, _LANES, out=product)
        np.right_shift(crossed, _HALF, out=even)
        even ^= odd
        even ^= round_key
        np.bitwise_and(crossed, _LOW, out=odd)
    return even[0], odd[0], even[1], odd[1]


def _round_keys_numpy(k0: np.ndarray | int, k1: np.ndarray | int) -> Iterable[np.ndarray]:
    if isinstance(k0, int) and isinstance(k1, int):
        return np.array(_round_keys(k0, k1), np.uint64)[:, :, None]
    both = np.stack((np.asarray(k0, np.uint64), np.asarray(k1, np.uint64)))
    steps = np.array(_WEYL, np.uint64)[:, None]
    return ((both + steps * np.uint64(i)) & _LOW for i in range(_ROUNDS))


def philox_torch(
    c0: torch.Tensor,
    c1: torch.Tensor,
    c2: torch.Tensor,
    c3: torch.Tensor,
    k0: torch.Tensor,
    k1: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks on int64 tensors that hold words in [0, 2**32) and broadcast against each other.

    A product of two words may wrap around in int64; its two halves, taken by mask, are still exact. Only
    factors are masked, and what is returned: bits above 32 do no harm before.
    """
    m0, m1 = _MULTIPLIERS
    for i in range(_ROUNDS):
        p0 = c0 * m0
        p1 = c2 * m1
        r0 = k0 + (i * _WEYL[0] & MASK32)
        r1 = k1 + (i * _WEYL[1] & MASK32)
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ r0) & MASK32, p1, ((p0 >> 32) ^ c3 ^ r1) & MASK32, p0
    return c0, c1 & MASK32, c2, c3 & MASK32
