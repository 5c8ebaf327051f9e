"""Keys: small values that stand for a stream of random numbers each.

A key is an int64 CPU tensor of shape (2,) that holds the 64-bit patterns of a seed and an offset. Keys
are made from a seed once (`key`) and then derived by hashing (`fold_in`, `split`), never by adding, so
that seed 1 at epoch 0 has nothing to do with seed 0 at epoch 1. `helios_fn.random.derive` holds the
exact specification.

Concrete keys are derived on the host in Python integers. Inside ``torch.compile`` and ``torch.func``
transforms the same bits come out of tensor operations, so `fold_in` and `split` may be mapped over.
"""

from __future__ import annotations

import functools
import operator
import struct
from typing import Any, SupportsIndex

import numpy as np
import torch

from ..tracing import is_traced as in_transform
from ..types import Key
from . import derive, operators
from .derive import MASK64, Words

_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_SMALL = 16  # up to so many rows, Python integers beat the fixed cost of a NumPy derivation
_WINDOW = 256  # siblings derived at a time by `consecutive`: one NumPy derivation costs as much as 25 single ones
_RECENT = 8  # keys whose window is remembered
_TWO_WORDS = struct.Struct("=QQ").pack


def key(seed: SupportsIndex) -> Key:
    """The root key of a seed.

    Args:
        seed: an integer in [-2**63, 2**64). Seeds that are equal modulo 2**64 give the same key.

    Returns:
        The key (seed, 0): int64, shape (2,), on the CPU.

    Raises:
        TypeError: ``seed`` is not an integer; booleans and floats are refused.
        ValueError: ``seed`` does not fit 64 bits.

    Example:
        >>> hf.random.key(6691).tolist()
        [6691, 0]
    """
    return pack((_checked_int("seed", seed) & MASK64, 0))


def fold_in(key: Key, /, *data: SupportsIndex | str) -> Key:
    """A key derived from a key and data: equal for equal data, independent for different data.

    ``fold_in(key, a, b)`` equals ``fold_in(fold_in(key, a), b)``, and ``fold_in(key)`` is ``key``.
    The integer 1 and the string "1", or "ab" and the pair "a", "b", are different data.

    Args:
        key: the parent; it may still be drawn from, independently of its children.
        data: integers in [-2**63, 2**64), strings (names; cost grows by one block in 8 bytes), or
            integer tensors of shape (), which count as integers in [-2**63, 2**63).

    Raises:
        TypeError: a datum is of another type (booleans and floats too), or ``key`` is not a key.
        ValueError: an integer does not fit 64 bits.

    Example:
        >>> root = hf.random.key(0)
        >>> hf.random.fold_in(root, "dropout", 7).tolist()
        [7171116816601126851, 3512395542729763613]
        >>> torch.equal(hf.random.fold_in(root, "dropout", 7), hf.random.fold_in(hf.random.fold_in(root, "dropout"), 7))
        True
    """
    words = host_words(key)
    if words is None:
        return _fold_traced(key, data)
    if not data:
        return key
    for position, datum in enumerate(data):
        if isinstance(datum, torch.Tensor) and is_traced(datum):
            return _fold_traced(pack(words), data[position:])
        words = fold_words(words, datum)
    return pack(words)


def consecutive(key: Key, name: str, start: Any, count: int) -> list[Key]:
    """``[fold_in(key, name, start + i) for i in range(count)]``, bit for bit, at a fraction of the cost.

    Meant for counters: concrete keys come out of a cached window of siblings.
    """
    found = _recent.find(key, name, start, count)
    if found is not None:
        return found
    words = host_words(key)
    if words is None or type(start) is not int or not 0 <= start < 1 << 62:
        return [fold_in(key, name, start + index) for index in range(count)]
    parent = derive.child_of_text(words, name)
    made = []
    for number in range(start, start + count):
        index, row = divmod(number, _WINDOW)
        window = _window(parent, index)
        made.append(torch.from_numpy(window.rows[row].copy()))
    if made:
        _recent.keep(key, name, window)
    return made


class _Window:
    """Siblings for consecutive integers from ``first`` on: as rows of int64 (256, 2), and as keys that may be lent."""

    def __init__(self, parent: Words, first: int) -> None:
        self.first, self.rows = first, _siblings(parent, first, _WINDOW, derive.INT)
        self.keys: list[Key] = []
        self._version = 0

    def lend(self, start: int, count: int) -> list[Key] | None:
        """The keys of ``count`` integers from ``start`` on, if all are here, and nobody has written to any key."""
        at = start - self.first
        if at < 0 or at + count > _WINDOW or self.keys[0]._version != self._version:
            return None
        return self.keys[at : at + count]

    def fill(self) -> None:
        """Make the keys: views of one tensor, which share its version."""
        self.keys = list(torch.from_numpy(self.rows.copy()).unbind())
        self._version = self.keys[0]._version


class _Recent:
    """The windows that were asked for last, found by the identity of their keys: a run asks for number after number."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        # The key is kept, so that its identity is nobody else's.
        self._found: dict[tuple[int, str], tuple[Key, int, _Window]] = {}

    def find(self, key: Key, name: str, start: Any, count: int) -> list[Key] | None:
        """The keys of ``count`` numbers from ``start`` on if all are in the window."""
        if type(start) is not int or torch.compiler.is_compiling():
            return None  # a graph that asked for an identity would be good for one key only
        found = self._found.get((id(key), name))
        if found is None or key._version != found[1]:
            return None
        return found[2].lend(start, count)

    def keep(self, key: Key, name: str, window: _Window) -> None:
        """Remember the window."""
        if key.is_inference() or torch.is_inference_mode_enabled():
            return  # such tensors have no version
        if not window.keys or window.lend(window.first, 1) is None:
            window.fill()
        for oldest in list(self._found)[: 1 - _RECENT]:
            self._found.pop(oldest, None)
        self._found[id(key), name] = (key, key._version, window)


_recent = _Recent()


def split(key: Key, n: int = 2, /) -> torch.Tensor:
    """``n`` independent keys, the rows of an int64 tensor of shape (n, 2). Row i does not depend on n.

    Raises:
        TypeError: ``n`` is not an integer, or ``key`` is not a key.
        ValueError: ``n`` is negative.

    Example:
        >>> first, second = hf.random.split(hf.random.key(0))
        >>> torch.equal(second, hf.random.split(hf.random.key(0), 5)[1])
        True
    """
    words = host_words(key)
    if _checked_int("n", n) < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if words is None:
        return _child_traced(key, torch.arange(n, dtype=torch.int64, device=key.device), derive.SPLIT)
    if n <= _SMALL:
        rows = np.array([derive.child(words, i, derive.SPLIT) for i in range(n)], np.uint64).reshape(n, 2)
        return torch.from_numpy(rows.view(np.int64))
    return torch.from_numpy(_siblings(words, 0, n, derive.SPLIT))


def key_words(key: Key, /) -> Words:
    """The seed and the offset of a concrete key as Python integers in [0, 2**64).

    Raises:
        TypeError: ``key`` is not a key, or has no value yet (under ``vmap`` or ``torch.compile``).
        ValueError: its shape is not (2,).
    """
    words = host_words(key)
    if words is not None:
        return words
    try:
        if torch.compiler.is_compiling():
            raise RuntimeError("the values of tensors are unknown while compiling")
        return _read(key)
    except RuntimeError as error:
        raise TypeError(
            "this needs a concrete key, but the key is being traced (vmap or compile); take it outside of the "
            "transform, or draw with helios_fn.random.uniform, normal, bernoulli, ..., which can be traced"
        ) from error


def pack(words: Words) -> Key:
    """The key of two host words."""
    # Not torch.tensor: a default device that the user has set must not move keys off the CPU.
    return torch.from_numpy(np.frombuffer(bytearray(_TWO_WORDS(*words)), np.int64))


def fold_words(words: Words, datum: Any) -> Words:
    """`fold_in` of one datum on host words."""
    if isinstance(datum, str):
        return derive.child_of_text(words, datum)
    return derive.child(words, *derive.message_of_int(_checked_int("data", datum)))


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a tensor's value cannot be read cheaply now: compiling, in a transform, or on a device."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) is not torch.Tensor
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or not tensor.is_cpu
    )


def host_words(key: Any) -> Words | None:
    """The words of a key that lies on the host; ``None`` where `is_traced`. Refuses what is not a key."""
    # What is usual, decided by as few questions as possible: this is asked several times in each step.
    if type(key) is torch.Tensor and key.dtype is torch.int64 and key.is_cpu and not in_transform():
        words = key.tolist()
        if type(words) is list and len(words) == 2 and type(words[0]) is int:
            return words[0] & MASK64, words[1] & MASK64
    check_key(key)
    return None if is_traced(key) else _read(key)


def _read(key: torch.Tensor) -> Words:
    seed, offset = key.tolist()
    return seed & MASK64, offset & MASK64


@functools.lru_cache(maxsize=16)
def _window(parent: Words, index: int) -> _Window:
    """The children of ``parent`` for the integers of the window with this index."""
    return _Window(parent, index * _WINDOW)


def _siblings(parent: Words, start: int, count: int, tag: int) -> np.ndarray:
    numbers = np.arange(start, start + count, dtype=np.uint64)
    return derive.children(parent, numbers, tag).view(np.int64)


def _fold_traced(key: torch.Tensor, data: tuple[Any, ...]) -> torch.Tensor:
    for datum in data:
        key = _fold_one_traced(key, datum)
    return key


def _fold_one_traced(key: torch.Tensor, datum: Any) -> torch.Tensor:
    if isinstance(datum, str):
        for number, tag in derive.message_of_text(datum):
            key = _fold_number(key, number, tag)
        return key
    if isinstance(datum, torch.Tensor):
        _check_int_tensor(datum)
        return _child_traced(key, datum.to(key.device, torch.int64), derive.INT)
    return _fold_number(key, *derive.message_of_int(_checked_int("data", datum)))


def _fold_number(key: torch.Tensor, number: int, tag: int) -> torch.Tensor:
    signed = number - (1 << 64) if number >= 1 << 63 else number
    return _child_traced(key, torch.full((), signed, dtype=torch.int64, device=key.device), tag)


def _child_traced(key: torch.Tensor, numbers: torch.Tensor, tag: int) -> torch.Tensor:
    """The children of a key for numbers of shape (...): int64 (..., 2)."""
    return (operators.derived if key.is_cpu else derive.child_traced)(key, numbers, tag)


def _checked_int(what: str, value: Any) -> int:
    if isinstance(value, torch.Tensor):
        _check_int_tensor(value)
        return int(value)
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            also = " or a string" if what == "data" else ""
            raise TypeError(f"{what} must be an integer{also}, got {value!r} of type {type(value).__name__}")
        value = operator.index(value)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{what} must be in [-2**63, 2**64), got {value}")
    return value


def _check_int_tensor(value: torch.Tensor) -> None:
    if value.dtype not in _INT_DTYPES or value.dim() != 0:
        raise TypeError(
            f"a tensor given as data must be a signed integer (or uint8) of shape (), got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )


def check_key(key: Any) -> None:
    """Refuse what is not a key; its value may be unknown."""
    if not isinstance(key, torch.Tensor):
        raise TypeError(f"a key must be an int64 tensor, got {type(key).__name__}; make one with helios_fn.random.key")
    if key.dtype is not torch.int64:
        raise TypeError(f"a key must be an int64 tensor, got {key.dtype}; make one with helios_fn.random.key")
    if key.shape != (2,):
        raise ValueError(
            f"a key must have shape (2,), got {tuple(key.shape)}; index rows of a split, or map over them with "
            "torch.func.vmap"
        )
