"""Derivation and draws as two operators of torch: what keys go through where their values cannot be read.

Written out in tensor operations, one draw is some two hundred of them, which a compiler spends seconds on. As
operators they are opaque to it and run on the host when the values are there: compiled, under ``vmap``
and within gradients. Keys on other devices than the CPU are derived by the written-out form.

- ``helios_fn::derive(parents, numbers, tag)``: int64 (m, 2) and (m,) give the children, (m, 2).
- ``helios_fn::words(keys, count)``: int64 (m, 2) give the first ``count`` draw blocks of each, int32 (m, count, 4),
  whose elements are the 32-bit patterns of the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import derive, kernels
from .derive import MASK64, Words, halves
from .philox import MASK32, philox_torch, philox_words

_MANY = 16  # so many children of one parent are derived in Python integers; more of them by NumPy

_library = torch.library.Library("helios_fn", "FRAGMENT")
_library.define("derive(Tensor parents, Tensor numbers, int tag) -> Tensor")
_library.define("words(Tensor keys, SymInt count) -> Tensor")


def derived(parent: torch.Tensor, numbers: torch.Tensor, tag: int) -> torch.Tensor:
    """The children of a key, int64 (2,), for numbers of shape (...): int64 (..., 2)."""
    flat = numbers.reshape(-1)
    rows = torch.ops.helios_fn.derive(parent.expand(flat.shape[0], 2), flat, tag)
    return rows.reshape(*numbers.shape, 2)


def words(key: torch.Tensor, count: int) -> torch.Tensor:
    """The first draw blocks of a key: int64 (count, 4)."""
    return torch.ops.helios_fn.words(key.unsqueeze(0), count).squeeze(0).to(torch.int64) & MASK32


def host_words(keys: list[Words], start: int, count: int) -> np.ndarray:
    """The draw blocks [start, start + count) of m keys: int64 (m, count, 4), each word in [0, 2**32)."""
    low, half = np.uint64(MASK32), np.uint64(32)
    if len(keys) == 1:
        seed, offset = keys[0]
        position = np.arange(start, start + count, dtype=np.uint64) + np.uint64(offset)
        lanes = philox_words(position & low, position >> half, 0, 0, seed & MASK32, seed >> 32)
    else:
        seeds, offsets = np.array(keys, np.uint64).repeat(count, axis=0).T
        position = np.tile(np.arange(start, start + count, dtype=np.uint64), len(keys)) + offsets
        lanes = philox_words(position & low, position >> half, 0, 0, seeds & low, seeds >> half)
    made = np.empty((len(keys) * count, 4), np.uint64)
    for column, lane in enumerate(lanes):
        made[:, column] = lane
    return made.view(np.int64).reshape(len(keys), count, 4)


def traced_words(keys: torch.Tensor, count: int) -> torch.Tensor:
    """`words` of many keys in tensor operations: int64 (..., 2) give (..., count, 4)."""
    # The key's offset is added before the counter is multiplied: a constant range times a large
    # constant was turned into an index by inductor, which overflowed.
    position = keys[..., 1:] + torch.arange(count, dtype=torch.int64, device=keys.device)
    zero = torch.zeros_like(position)
    return torch.stack(philox_torch(*halves(position), zero, zero, *halves(keys[..., :1])), dim=-1)


def _derive(parents: torch.Tensor, numbers: torch.Tensor, tag: int) -> torch.Tensor:
    fast = kernels.derive(parents, numbers, tag)
    if fast is not None:
        return fast
    rows = _host(parents)
    if len(rows) > _MANY and len(set(rows)) == 1:
        made = derive.children(rows[0], numbers.numpy().view(np.uint64), tag)
    else:
        pairs = zip(rows, numbers.tolist(), strict=True)
        made = np.array([derive.child(row, number & MASK64, tag) for row, number in pairs], np.uint64)
    return torch.from_numpy(made.reshape(len(rows), 2).view(np.int64))


def _words(keys: torch.Tensor, count: int) -> torch.Tensor:
    fast = kernels.words(keys, count)
    if fast is not None:
        return fast
    return torch.from_numpy(host_words(_host(keys), 0, count).astype(np.uint32).view(np.int32))


def _host(keys: torch.Tensor) -> list[Words]:
    return [(seed & MASK64, offset & MASK64) for seed, offset in keys.tolist()]


def _derive_mapped(info: Any, dims: Any, parents: torch.Tensor, numbers: torch.Tensor, tag: int) -> tuple[Any, int]:
    lanes = info.batch_size
    parents = _lane_first(parents, dims[0], lanes)
    numbers = _lane_first(numbers, dims[1], lanes)
    rows = torch.ops.helios_fn.derive(parents.reshape(-1, 2), numbers.reshape(-1), tag)
    return rows.reshape(parents.shape), 0


def _words_mapped(info: Any, dims: Any, keys: torch.Tensor, count: int) -> tuple[Any, int]:
    keys = _lane_first(keys, dims[0], info.batch_size)
    made = torch.ops.helios_fn.words(keys.reshape(-1, 2), count)
    return made.reshape(*keys.shape[:-1], count, 4), 0


def _lane_first(tensor: torch.Tensor, dim: int | None, lanes: int) -> torch.Tensor:
    return tensor.expand(lanes, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _words_fake(keys: torch.Tensor, count: int) -> torch.Tensor:
    return keys.new_empty((len(keys), count, 4), dtype=torch.int32)


_library.impl("derive", _derive, "CPU")
_library.impl("words", _words, "CPU")
torch.library.register_fake("helios_fn::derive", lambda parents, numbers, tag: torch.empty_like(parents), lib=_library)
torch.library.register_fake("helios_fn::words", _words_fake, lib=_library)
torch.library.register_vmap("helios_fn::derive", _derive_mapped, lib=_library)
torch.library.register_vmap("helios_fn::words", _words_mapped, lib=_library)
