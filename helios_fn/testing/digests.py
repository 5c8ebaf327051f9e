"""Trees as digests, leaf by leaf, so that two runs can be compared in different processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from .. import tree
from ..types import MicroBatches

Digests: TypeAlias = Mapping[str, str]
"""For each path of a tree the kind of its leaf and a hash of its bits, in one text."""

_BITS = " #"
_PLAIN = (bool, int, float, complex, str, bytes)


def leaf_digests(values: Any) -> dict[str, str]:
    """The digest of each leaf of any tree, also of one that holds objects of the user's own.

    Of an object that is neither tensor, array nor Python scalar only the type counts: its ``repr``
    may hold an address, and nobody knows which of its attributes matter.
    """
    return {path: f"{_kind(leaf)}{_BITS}{_hash(leaf)}" for path, leaf in tree.items(values)}


def batch_digests(batch: Any) -> dict[str, str]:
    """What a step received, leaf by leaf. A micro-batch goes by its number within the iteration, whoever has it."""
    if not isinstance(batch, MicroBatches):
        return leaf_digests(batch)
    found = {"micro-batches": str(batch.count)}
    for index, item in enumerate(batch.items, start=batch.start):
        found |= {f"micro-batch {index}{path}": kind for path, kind in leaf_digests(item).items()}
    return found


def differing(left: Digests, right: Digests) -> list[str]:
    """One line for each path whose digests differ, in the order of ``left``."""
    paths = [*left, *(path for path in right if path not in left)]
    return [
        _in_words(path, left.get(path, "absent"), right.get(path, "absent"))
        for path in paths
        if left.get(path) != right.get(path)
    ]


def _in_words(path: str, left: str, right: str) -> str:
    kind, other = (side.rpartition(_BITS)[0] or side for side in (left, right))
    return f"{path or '(the leaf itself)'}: " + (f"{kind}, other values" if kind == other else f"{kind} != {other}")


def _kind(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return tree.describe(leaf) + (f" {leaf.item()}" if _is_single(leaf) else "")
    if isinstance(leaf, np.ndarray):
        return f"numpy.{leaf.dtype}{list(leaf.shape)}"
    return tree.describe(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__


def _is_single(leaf: torch.Tensor) -> bool:
    return leaf.dim() == 0 and leaf.layout is torch.strided and leaf.device.type != "meta"


def _hash(leaf: Any) -> str:
    data = _bits(leaf)
    return "" if data is None else hashlib.blake2b(data, digest_size=16).hexdigest()


def _bits(leaf: Any) -> bytes | memoryview | None:
    if isinstance(leaf, torch.Tensor):
        try:
            return tree.tensor_bytes(leaf)
        except (RuntimeError, NotImplementedError, TypeError):
            return None  # sparse, nested, quantised and meta tensors cannot be read so
    if isinstance(leaf, np.ndarray | np.generic):
        return None if leaf.dtype.hasobject else tree.scalar_bytes(np.asarray(leaf))
    return tree.scalar_bytes(leaf) if isinstance(leaf, _PLAIN) else None
