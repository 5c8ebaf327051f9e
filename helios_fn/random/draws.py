"""Portable draws: the same numbers on every device, eager, compiled and under ``vmap`` over keys.

All samplers have one shape, ``sampler(key, shape, *, ...)``, and one law: element j of a draw depends on
the key and on j alone, so a longer draw begins with the shorter one, and the shape only arranges. They
work in integer operations on the blocks of `helios_fn.random.derive`, which makes them exact. On the CPU
they take one to two times as long as native generators when eager, a quarter to a half as long when
compiled; eager on other devices, several times as long.

Bits, integers, Booleans, permutations and standard uniforms are equal everywhere. Normals and scaled
uniforms may differ in their last bits between eager and compiled code or between devices, whose
logarithms, cosines and fused multiplications round differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch

from ..types import Key
from . import operators
from .keys import host_words

Shape: TypeAlias = int | Sequence[int]
_Transform: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From the words of n blocks, int64 (n, 4), to the values that they give, (n, k)."""

# Blocks made at a time by eager draws: what fits a cache.
_CHUNK = 1 << 13
# Bits of a standard uniform: the significand of its type, so that every multiple is exact and below 1.
_UNIFORM_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def bits(
    key: Key,
    shape: Shape = (),
    *,
    width: Literal[32, 64] = 32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Random bits, as int64: integers in [0, 2**32) for width 32, all 64-bit patterns for width 64.

    Args:
        key: the key to draw from.
        shape: the shape of the result.
        width: how many random bits each element has.
        device: where to draw; by default where the key is.
    """
    if width == 32:
        return _draw(key, shape, device, 4, torch.int64, lambda words: words)
    if width == 64:
        return _draw(key, shape, device, 2, torch.int64, _wide)
    raise ValueError(f"width must be 32 or 64, got {width!r}")


def uniform(
    key: Key,
    shape: Shape = (),
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Uniform draws from [low, high), on a grid of 2**-p where p is the precision of ``dtype``.

    Standard float32 draws are the low 24 bits of each word, as in ``torch.func._random.uniform``.

    Raises:
        ValueError: ``low`` is not below ``high``, or one is not finite.
        TypeError: ``dtype`` is not a floating type of 16, 32 or 64 bits.
    """
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"low must be below high and both finite, got low={low!r}, high={high!r}")
    digits = _uniform_bits(dtype)

    def transform(words: torch.Tensor) -> torch.Tensor:
        words = _wide(words) if digits > 32 else words
        return (words & ((1 << digits) - 1)).to(dtype) * 2.0**-digits

    values = _draw(key, shape, device, 2 if digits > 32 else 4, dtype, transform)
    if (low, high) == (0.0, 1.0):
        return values
    # Rounding may reach `high` itself, which is outside of the interval.
    bound = torch.tensor((high, low), dtype=dtype, device=values.device)
    return torch.minimum(values * (high - low) + low, torch.nextafter(bound[0], bound[1]))


def normal(
    key: Key,
    shape: Shape = (),
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Normal draws by the Box-Muller transform (https://doi.org/10.1214/aoms/1177706645).

    Types of 16 bits are rounded from float32. Float32 draws have the layout of ``torch.func._random.normal``.

    Raises:
        ValueError: ``std`` is negative.
        TypeError: ``dtype`` is not a floating type of 16, 32 or 64 bits.
    """
    if not std >= 0:
        raise ValueError(f"std must not be negative, got {std!r}")
    double = _uniform_bits(dtype) > 32

    def transform(words: torch.Tensor) -> torch.Tensor:
        if double:
            pairs = (_wide(words) & ((1 << 53) - 1)).to(torch.float64)
            return _box_muller(pairs, 2.0**-53)
        return _box_muller(words.to(torch.float32), 2.0**-32)

    values = _draw(key, shape, device, 2 if double else 4, torch.float64 if double else torch.float32, transform)
    if (mean, std) != (0.0, 1.0):
        values = values * std + mean
    return values.to(dtype)


def bernoulli(
    key: Key,
    shape: Shape = (),
    *,
    p: float | torch.Tensor = 0.5,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Booleans that are true with probability ``p``, exact to 2**-32: never for 0, always for 1.

    Args:
        key: the key to draw from.
        shape: the shape of the result.
        p: the probability; a tensor must broadcast to ``shape``, and its values are not checked.
        device: where to draw; by default where the key is.

    Raises:
        ValueError: ``p`` is a number outside of [0, 1].
    """
    if isinstance(p, torch.Tensor):
        words = bits(key, shape, device=device)
        # An integer comparison, here and below: the compiler then makes no floating Booleans.
        return words < (p.to(words.device, torch.float64) * 2.0**32).to(torch.int64)
    threshold = _threshold(p)
    return _draw(key, shape, device, 4, torch.bool, lambda words: words < threshold)


def mask(
    key: Key,
    shape: Shape,
    *,
    p: float,
    value: float,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """``value`` where `bernoulli` is true and 0 elsewhere, in one pass: a mask to multiply with."""
    threshold = _threshold(p)
    return _draw(key, shape, device, 4, dtype, lambda words: (words < threshold).to(dtype) * value)


def randint(
    key: Key,
    shape: Shape = (),
    *,
    low: int = 0,
    high: int,
    dtype: torch.dtype = torch.int64,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Integers from [low, high), at most 2**32 different ones; their probabilities are equal to 2**-64.

    Raises:
        ValueError: ``high - low`` is not in [1, 2**32]. For wider ranges draw `bits` of width 64.

    Example:
        >>> hf.random.randint(hf.random.key(0), (8,), high=10).tolist()
        [8, 6, 3, 0, 3, 2, 4, 4]
    """
    span = high - low
    if not 1 <= span <= 1 << 32:
        raise ValueError(f"high - low must be in [1, 2**32], got low={low}, high={high}")

    def transform(words: torch.Tensor) -> torch.Tensor:
        # floor(word * span / 2**64) for the 64-bit word (w1, w0), by halves since int64 holds no 128 bits.
        carry = (words[:, 0::2] * span >> 32) & 0xFFFFFFFF
        return ((words[:, 1::2] * span + carry) >> 32 & 0xFFFFFFFF) + low

    return _draw(key, shape, device, 2, torch.int64, transform).to(dtype)


def permutation(key: Key, n: int, *, device: torch.device | str | None = None) -> torch.Tensor:
    """A permutation of 0..n-1 (int64, shape (n,)), by sorting random 64-bit numbers.

    Sorting takes memory and time for all n elements at once; equal numbers (a chance of n**2 / 2**65)
    keep their order.

    Example:
        >>> hf.random.permutation(hf.random.key(0), 5).tolist()
        [1, 0, 3, 4, 2]
    """
    return torch.argsort(bits(key, (n,), width=64, device=device), stable=True)


def _draw(
    key: torch.Tensor,
    shape: Shape,
    device: torch.device | str | None,
    per_block: int,
    dtype: torch.dtype,
    transform: _Transform,
) -> torch.Tensor:
    """Apply ``transform``, which makes ``per_block`` values of each block, to as many blocks as are needed."""
    words = host_words(key)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must have no negative sizes, got {sizes}")
    numel = math.prod(sizes)
    count = -(-numel // per_block)
    place = key.device if device is None else torch.device(device)
    if words is None or place.type != "cpu":
        values = transform(_traced_words(key, count, place))
    elif count <= _CHUNK:
        values = transform(torch.from_numpy(operators.host_words([words], 0, count)[0]))
    else:
        # Bounded memory: without chunks the temporaries are 40 times as large as a float32 result.
        values = torch.empty((count, per_block), dtype=dtype, device=place)
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            values[start:stop] = transform(torch.from_numpy(operators.host_words([words], start, stop - start)[0]))
    return values.reshape(-1)[:numel].reshape(sizes)


def _traced_words(key: torch.Tensor, count: int, place: torch.device) -> torch.Tensor:
    """The first blocks of a key that cannot be read, or for another device."""
    if key.is_cpu and place.type == "cpu":
        return operators.words(key, count)
    return operators.traced_words(key.to(place), count)


def _wide(words: torch.Tensor) -> torch.Tensor:
    return words[:, 0::2] | words[:, 1::2] << 32


def _box_muller(pairs: torch.Tensor, unit: float) -> torch.Tensor:
    # Uniforms at the middles of the grid's cells: never 0, whose logarithm is not finite.
    uniforms = pairs * unit + 0.5 * unit
    radius = torch.sqrt(-2.0 * torch.log(uniforms[:, 0::2]))
    angle = uniforms[:, 1::2] * (2.0 * math.pi)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)


def _threshold(p: float) -> int:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    return int(p * 2.0**32)


def _uniform_bits(dtype: torch.dtype) -> int:
    if dtype not in _UNIFORM_BITS:
        names = ", ".join(str(known) for known in _UNIFORM_BITS)
        raise TypeError(f"dtype must be one of {names}, got {dtype}")
    return _UNIFORM_BITS[dtype]
