"""A book of the tensors that are alive: what every operation allocates, and when it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch


class Ledger:
    """Counts bytes of storages, each once, from the operation that makes it until it is freed.

    Args:
        inputs: tensors that are there before, and stay.
    """

    def __init__(self, inputs: Iterable[torch.Tensor]) -> None:
        self._alive: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._held = [tensor.untyped_storage() for tensor in inputs]
        self._inputs = {storage._cdata for storage in self._held}
        self.now = sum({storage._cdata: storage.nbytes() for storage in self._held}.values())
        self.start = self.peak = self.now
        self.saved_now = self.saved_peak = 0

    def note(self, tensors: Iterable[torch.Tensor]) -> None:
        """Enter what an operation returned; views and results in place are there already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            name, size = storage._cdata, storage.nbytes()
            if name in self._inputs or name in self._alive:
                continue
            self._alive[name] = size
            # Storages keep their Python object as long as they live, whoever holds them.
            weakref.finalize(storage, self._drop, name).atexit = False
            self.now += size
            self.peak = max(self.peak, self.now)

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note that autograd keeps a tensor for the backward pass; a pack hook."""
        self.note([tensor])
        name = tensor.untyped_storage()._cdata
        if name in self._alive and name not in self._saved:
            self._saved[name] = self._alive[name]
            self.saved_now += self._alive[name]
            self.saved_peak = max(self.saved_peak, self.saved_now)
        return tensor

    def _drop(self, name: int) -> None:
        self.now -= self._alive.pop(name, 0)
        self.saved_now -= self._saved.pop(name, 0)


def bytes_of(leaves: Iterable[Any], seen: set[int]) -> int:
    """Bytes of tensors and arrays, without the storages that are in ``seen`` already; enters them there."""
    total = 0
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            storage = leaf.untyped_storage()
            name, size = storage._cdata, storage.nbytes()
        else:
            name, size = id(leaf), int(getattr(leaf, "nbytes", 0))
        if name not in seen:
            seen.add(name)
            total += size
    return total
