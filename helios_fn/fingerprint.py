"""Short digests of the leaves of a tree, cheap enough to be taken during training.

A leaf's digest is 64 bits of BLAKE2b over its dtype, its shape and its content. The content of a small tensor is its
bytes in row-major order. Of a large one it is sums, taken where the tensor is, so that an accelerator sends a few
kilobytes: for each 32 MiB the 64-bit words are added modulo ``2**64``, once into 2048 columns by position and once
into 2049. Two positions of a block agree in at most one of the two, so a change of up to three words of it is
noticed for certain (but for a collision of the hash), and others unless they cancel in both lists. Nothing depends on
the device, the strides or the number of threads.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from . import tree
from .dtensors import is_sharded
from .types import Tree

SMALL = 32 << 10
"""The largest tensor, in bytes, whose bytes are hashed themselves."""
_COLUMNS = (2048, 2049)
_CHUNK = 2048 * 2048  # words: fewer than 2048 * 2049, so that two columns tell one position
_ROWS = 64  # what is summed at once on a CPU: 1 MiB, which stays in its cache
_PLAIN = (bool, int, float, complex, str, bytes)


def fingerprint(values: Tree) -> dict[str, str]:
    """The digest of each leaf by path: 16 hexadecimal digits. Equal bits, equal digests, on any device.

    Sharded tensors, of which this process has a part only, are left out. Of an object that is neither tensor, array
    nor scalar the type alone counts, likewise of tensors without dense memory.
    """
    pairs = [(path, leaf) for path, leaf in tree.items(values) if not is_sharded(leaf)]
    contents = _fetched([_content(leaf) for _, leaf in pairs])
    return {path: _digest(_head(leaf), data) for (path, leaf), data in zip(pairs, contents, strict=True)}


def _head(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return tree.describe(leaf)
    return f"array {leaf.dtype}{leaf.shape}" if isinstance(leaf, np.ndarray) else type(leaf).__name__


def _digest(head: str, data: bytes | memoryview) -> str:
    hasher = hashlib.blake2b(f"{head}\0".encode(), digest_size=8)
    hasher.update(data)
    return hasher.hexdigest()


def _content(leaf: Any) -> torch.Tensor | bytes:
    """What is hashed of a leaf: as bytes, or as a tensor of them that is still on its device."""
    if isinstance(leaf, torch.Tensor):
        return _summary(leaf.detach()) if leaf.layout is torch.strided and leaf.device.type != "meta" else b""
    if isinstance(leaf, np.ndarray | np.generic):
        return b"" if leaf.dtype.hasobject else tree.scalar_bytes(np.asarray(leaf))
    return tree.scalar_bytes(leaf) if isinstance(leaf, _PLAIN) else b""


def _summary(tensor: torch.Tensor) -> torch.Tensor | bytes:
    try:
        flat = _bytes_of(tensor)
    except (RuntimeError, NotImplementedError, TypeError):
        return b""  # a quantised or otherwise special tensor, whose memory cannot be seen
    if flat.numel() <= SMALL:
        return flat
    if flat.data_ptr() % 8 or flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    words = flat[:whole].view(torch.int64)
    sums = [_sums(chunk, columns) for chunk in words.split(_CHUNK) for columns in _COLUMNS]
    return torch.cat([*(each.view(torch.uint8) for each in sums), flat[whole:]])


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in row-major order as a vector of bytes, copied only where needed."""
    dense = tensor.resolve_conj().resolve_neg().contiguous()
    # Not reshape: a contiguous tensor of one element may have any stride, and keeps it.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _sums(words: torch.Tensor, columns: int) -> torch.Tensor:
    """The words added up by their position modulo ``columns``."""
    rows = words[: len(words) // columns * columns].view(-1, columns)
    tail = words[rows.numel() :]
    found = torch.zeros(columns, dtype=torch.int64, device=words.device)
    for part in rows.split(_ROWS) if words.device.type == "cpu" else (rows,):
        found += part.sum(0)
    found[: len(tail)] += tail
    return found


def _fetched(contents: list[torch.Tensor | bytes]) -> list[bytes | memoryview]:
    """All contents on the host: those of one device in one transfer."""
    found: list[bytes | memoryview] = [b"" if isinstance(each, torch.Tensor) else each for each in contents]
    places: dict[torch.device, list[int]] = {}
    for at, each in enumerate(contents):
        if isinstance(each, torch.Tensor):
            places.setdefault(each.device, []).append(at)
    for device, numbers in places.items():
        parts = [part for at in numbers if isinstance(part := contents[at], torch.Tensor)]
        if device.type != "cpu":
            parts = list(torch.cat(parts).cpu().split([part.numel() for part in parts]))
        for at, part in zip(numbers, parts, strict=True):
            found[at] = part.numpy().data if part.numel() else b""
    return found
