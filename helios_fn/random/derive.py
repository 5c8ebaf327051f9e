"""How keys are derived from keys: the specification, on the host and in tensor operations.

A key is two 64-bit words, (seed, offset). Below, ``lo`` and ``hi`` are the halves of such a word and
``philox(c0, c1, c2, c3; k0, k1)`` is one block of Philox4x32-10.

**Draws.** Block i of a key is ``philox(lo(offset + i), hi(offset + i), 0, 0; lo(seed), hi(seed))``; this
is the layout of ``torch.func._random``. The last counter word is 0 in draws and a nonzero tag in
all blocks below, so a derivation never shares a block with a draw.

**Derivation.** A child is made from a 64-bit number and a tag, in two blocks, because a key, a number
and a tag do not fit one::

    r0, r1, r2, r3 = philox(lo(offset), hi(offset), 0, ABSORB; lo(seed), hi(seed))
    w0, w1, w2, w3 = philox(lo(number) ^ r3, hi(number), r2, tag; r0, r1)
    child          = (w0 | w1 << 32,  w2 | w3 << 32)

The second block carries all of ``r``: two parents have equal children only if their 96 bits r0, r1,
r2 agree. For one parent and tag, different numbers are different counters, hence different blocks.

**Messages.** What is folded in becomes one or more (number, tag) pairs:

- an integer in [-2**63, 2**63): its two's complement, tag INT;
- an integer in [2**63, 2**64): itself, tag UINT;
- a string: its UTF-8 bytes in parts of eight, each read as a little-endian number. All but the last
  have tag TEXT_PART; the last holds 0 to 8 bytes and has tag TEXT_END + their number. An empty
  string is one empty last part;
- row i of a split: i, tag SPLIT;
- the words of a sample: its index, tag SAMPLE (the block itself, not a key).

No message is a prefix of another, so a chain of messages can be read back from its pairs: different
data are different chains, and a collision is left to chance alone.

The numbers here are frozen: a change would silently change every run of every user.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
import torch

from .philox import MASK32, Block, philox_int, philox_numpy, philox_torch

Words: TypeAlias = tuple[int, int]
"""A key on the host: (seed, offset), each in [0, 2**64)."""

MASK64 = 0xFFFFFFFFFFFFFFFF
ABSORB, INT, UINT, SPLIT, SAMPLE = 1, 2, 3, 4, 5
TEXT_PART, TEXT_END = 0x10, 0x20
_PART = 8


def message_of_int(number: int) -> tuple[int, int]:
    """The (number, tag) pair of an integer in [-2**63, 2**64)."""
    return number & MASK64, INT if number < 1 << 63 else UINT


def message_of_text(text: str) -> list[tuple[int, int]]:
    """The (number, tag) pairs of a string."""
    data = text.encode()
    parts = [data[start : start + _PART] for start in range(0, len(data), _PART)] or [b""]
    tags = [TEXT_PART] * (len(parts) - 1) + [TEXT_END + len(parts[-1])]
    return [(int.from_bytes(part, "little"), tag) for part, tag in zip(parts, tags, strict=True)]


@functools.lru_cache(maxsize=1024)
def absorb(parent: Words) -> Block:
    """The first block of every derivation from ``parent``; cached, since most keys have a common parent."""
    seed, offset = parent
    return philox_int(offset & MASK32, offset >> 32, 0, ABSORB, seed & MASK32, seed >> 32)


def child(parent: Words, number: int, tag: int) -> Words:
    """One derivation step on Python integers."""
    r0, r1, r2, r3 = absorb(parent)
    w0, w1, w2, w3 = philox_int((number & MASK32) ^ r3, number >> 32, r2, tag, r0, r1)
    return w0 | w1 << 32, w2 | w3 << 32


@functools.lru_cache(maxsize=1024)
def child_of_text(parent: Words, text: str) -> Words:
    """The child for a string; cached, since programs fold the same few names into the same few keys."""
    for number, tag in message_of_text(text):
        parent = child(parent, number, tag)
    return parent


def blocks(parent: Words, numbers: np.ndarray, tag: int) -> np.ndarray:
    """The last blocks of `child` for many numbers (uint64, shape (n,)): uint32 of shape (n, 4)."""
    r0, r1, r2, r3 = absorb(parent)
    mask, half = np.uint64(MASK32), np.uint64(32)
    return philox_numpy((numbers & mask) ^ np.uint64(r3), numbers >> half, r2, tag, r0, r1)


def children(parent: Words, numbers: np.ndarray, tag: int) -> np.ndarray:
    """`child` for many numbers (uint64, shape (n,)): uint64 of shape (n, 2)."""
    w = blocks(parent, numbers, tag).astype(np.uint64)
    joined: np.ndarray = w[:, 0::2] | w[:, 1::2] << np.uint64(32)
    return joined


def halves(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The low and the high 32 bits of 64-bit patterns in int64."""
    return word & MASK32, (word >> 32) & MASK32


def child_traced(parent: torch.Tensor, number: torch.Tensor, tag: int) -> torch.Tensor:
    """One derivation step in tensor operations: int64 (2,) and numbers of shape (...) give (..., 2)."""
    seed, offset = halves(parent[0]), halves(parent[1])
    zero = torch.zeros_like(seed[0])
    r0, r1, r2, r3 = philox_torch(*offset, zero, zero + ABSORB, *seed)
    low, high = halves(number)
    w0, w1, w2, w3 = philox_torch(low ^ r3, high, r2, zero + tag, r0, r1)
    return torch.stack((w0 | w1 << 32, w2 | w3 << 32), dim=-1)
