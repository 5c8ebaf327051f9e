"""Portable draws: the same numbers on every device, eager, compiled and under ``vmap`` over keys.

All samplers have one shape, ``sampler(key, shape, *, ...)``, and one law: element j of a draw depends on
the key and on j alone, so a longer draw begins with the shorter one, and the shape only arranges. They
work in integer tensor operations on the blocks of `helios_fn.random.derive`, which makes them exact and
6 to 16 times slower than native generators when eager, about as fast when compiled. Where speed
matters more than portability, use `helios_fn.random.generator`.

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
from .derive import halves
from .keys import check_key, is_traced
from .philox import philox_torch

Shape: TypeAlias = int | Sequence[int]
_Lanes: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# Blocks made at a time by eager draws: some 20 int64 temporaries of this length live at once.
_CHUNK = 1 << 15
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
        return _draw(key, shape, device, 4, torch.int64, torch.stack)
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

    def transform(lanes: _Lanes) -> torch.Tensor:
        words = _wide(lanes) if digits > 32 else torch.stack(lanes)
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

    def transform(lanes: _Lanes) -> torch.Tensor:
        if double:
            first, second = ((word & ((1 << 53) - 1)).to(torch.float64) for word in _wide(lanes))
            return torch.stack(_box_muller(first, second, 2.0**-53))
        w0, w1, w2, w3 = (word.to(torch.float32) for word in lanes)
        return torch.stack((*_box_muller(w0, w1, 2.0**-32), *_box_muller(w2, w3, 2.0**-32)))

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
    words = bits(key, shape, device=device)
    if isinstance(p, torch.Tensor):
        # An integer comparison, here and below: the compiler then makes no floating Booleans.
        return words < (p.to(words.device, torch.float64) * 2.0**32).to(torch.int64)
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    return words < int(p * 2.0**32)


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
    """
    span = high - low
    if not 1 <= span <= 1 << 32:
        raise ValueError(f"high - low must be in [1, 2**32], got low={low}, high={high}")

    def transform(lanes: _Lanes) -> torch.Tensor:
        # floor(word * span / 2**64) for the 64-bit word (w1, w0), by halves since int64 holds no 128 bits.
        w0, w1, w2, w3 = lanes
        carry = torch.stack((((w0 * span) >> 32), ((w2 * span) >> 32))) & 0xFFFFFFFF
        return ((torch.stack((w1, w3)) * span + carry) >> 32 & 0xFFFFFFFF) + low

    return _draw(key, shape, device, 2, torch.int64, transform).to(dtype)


def permutation(key: Key, n: int, *, device: torch.device | str | None = None) -> torch.Tensor:
    """A permutation of 0..n-1 (int64, shape (n,)), by sorting random 64-bit numbers.

    Sorting takes memory and time for all n elements at once; equal numbers (a chance of n**2 / 2**65)
    keep their order.
    """
    return torch.argsort(bits(key, (n,), width=64, device=device), stable=True)


def _draw(
    key: torch.Tensor,
    shape: Shape,
    device: torch.device | str | None,
    per_block: int,
    dtype: torch.dtype,
    transform: Callable[[_Lanes], torch.Tensor],
) -> torch.Tensor:
    """Apply ``transform``, from lanes of n blocks to values of shape (per_block, n), to the blocks needed."""
    check_key(key)
    chunked = not is_traced(key)
    if device is not None:
        key = key.to(device)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must have no negative sizes, got {sizes}")
    numel = math.prod(sizes)
    count = -(-numel // per_block)
    if not chunked or count <= _CHUNK:
        return transform(_lanes(key, 0, count)).mT.reshape(-1)[:numel].reshape(sizes)
    # Bounded memory: without chunks the temporaries are 40 times as large as a float32 result.
    out = torch.empty((count, per_block), dtype=dtype, device=key.device)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        out[start:stop] = transform(_lanes(key, start, stop - start)).mT
    return out.view(-1)[:numel].view(sizes)


def _lanes(key: torch.Tensor, start: int, count: int) -> _Lanes:
    """The draw blocks [start, start + count) of a key: four int64 tensors of words, each of shape (count,)."""
    # The key's offset is added before the counter is multiplied: a constant range times a large
    # constant was turned into an index by inductor, which overflowed.
    position = key[1] + torch.arange(start, start + count, dtype=torch.int64, device=key.device)
    zero = torch.zeros_like(position)
    return philox_torch(*halves(position), zero, zero, *halves(key[0]))


def _wide(lanes: _Lanes) -> torch.Tensor:
    w0, w1, w2, w3 = lanes
    return torch.stack((w0 | w1 << 32, w2 | w3 << 32))


def _box_muller(first: torch.Tensor, second: torch.Tensor, unit: float) -> tuple[torch.Tensor, torch.Tensor]:
    # Uniforms at the middles of the grid's cells: never 0, whose logarithm is not finite.
    radius = torch.sqrt(-2.0 * torch.log(first * unit + 0.5 * unit))
    angle = (second * unit + 0.5 * unit) * (2.0 * math.pi)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _uniform_bits(dtype: torch.dtype) -> int:
    if dtype not in _UNIFORM_BITS:
        names = ", ".join(str(known) for known in _UNIFORM_BITS)
        raise TypeError(f"dtype must be one of {names}, got {dtype}")
    return _UNIFORM_BITS[dtype]
