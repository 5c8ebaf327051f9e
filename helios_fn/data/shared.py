"""Tensors from workers through shared memory that is used again and again.

torch sends each tensor of a batch in a file of its own, for which the main process connects to the
worker and back: milliseconds, while the worker's interpreter is busy with the next batch, and fresh
pages on both sides. Here a large tensor travels in a *block*: shared memory that is sent once, and
from then on is known by its number. A flag in it says whether the tensor is still in use: the worker
sets it when it sends the block, and the main process clears it when nothing there refers to the
tensor any more. Small tensors travel within the message.

A reader may keep batches for as long as it likes: a block is never used again before its tensor is
gone, each tensor has a block of its own, and once all blocks are in use tensors go torch's way.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from .. import tree

INLINE = 8_192
"""Tensors of at most so many bytes travel within the message."""

BLOCKS = 32
"""Blocks of one worker: what it reads ahead, and what the reader keeps at a time."""

_HEADER = 64  # the flag's; as much as torch aligns memory to, on which the last bits of a product may depend
_SENDABLE = (torch.Tensor, np.ndarray, np.generic, bool, int, float, complex, str, bytes)


class Blocks:
    """The worker's side: gives out memory for the tensors of a batch, and makes the batch ready to be sent."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._used: set[int] = set()  # by the present batch
        self._filled: dict[int, int] = {}  # those that a tensor of it was written to, by address
        self._worker = os.getpid()

    def begin(self) -> None:
        """Start a batch; blocks that were given out and not sent are free again."""
        self._used.clear()
        self._filled.clear()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, in a block if it is large: `pack` then has nothing to copy."""
        number = self._take(math.prod(shape) * dtype.itemsize)
        if number is None:
            return torch.empty(shape, dtype=dtype, device="cpu")
        tensor = self._blocks[number].tensor(shape, dtype)
        self._filled[tensor.data_ptr()] = number
        return tensor

    def pack(self, batch: Any) -> Any:
        """The batch in a form that becomes the batch when it is unpickled in the main process.

        Raises whatever a leaf raises that cannot be sent: the queue would drop it in a thread, and the
        loader would wait for ever.
        """
        sent: list[_Block] = []
        packed = tree.map(lambda leaf: self._pack(leaf, sent), batch)
        for block in sent:
            block.known = True
            block.flag[0] = 1
        return packed

    def _pack(self, leaf: Any, sent: list[_Block]) -> Any:
        if type(leaf) is not torch.Tensor or not _is_plain(leaf):
            if not isinstance(leaf, _SENDABLE):
                ForkingPickler.dumps(leaf)
            return leaf
        leaf = leaf.resolve_conj().resolve_neg()  # what is only marked as conjugate, torch would send without the mark
        shape, dtype = tuple(leaf.shape), leaf.dtype
        if leaf.nbytes <= INLINE:
            return _Call(open_inline, ctypes.string_at(leaf.data_ptr(), leaf.nbytes), shape, dtype)
        # Taken out: where a tensor comes twice, its second place gets memory of its own.
        number = self._filled.pop(leaf.data_ptr(), None)
        if number is None:
            number = self._take(leaf.nbytes)
            if number is None:
                return leaf
            self._blocks[number].tensor(shape, dtype).copy_(leaf)
        block = self._blocks[number]
        sent.append(block)
        return _Call(open_block, self._worker, number, None if block.known else block.memory, shape, dtype)

    def _take(self, size: int) -> int | None:
        """The number of a block for ``size`` bytes: the smallest free one, a new one, or none."""
        if size <= INLINE:
            return None
        free = [
            (block.capacity, number)
            for number, block in enumerate(self._blocks)
            if number not in self._used and not block.flag[0]
        ]
        fitting = [found for found in free if found[0] >= size]
        if fitting:
            number = min(fitting)[1]
        elif len(self._blocks) < BLOCKS:
            number = len(self._blocks)
            self._blocks.append(_Block(size))
        elif free:
            number = min(free)[1]
            self._blocks[number] = _Block(size)
        else:
            return None
        self._used.add(number)
        return number


class _Block:
    """Shared memory, as its worker sees it."""

    def __init__(self, size: int) -> None:
        step = max(4096, 1 << max(0, size.bit_length() - 3))  # batches that grow a little find room
        self.capacity = -(-size // step) * step
        self.memory = torch.zeros(_HEADER + self.capacity, dtype=torch.uint8, device="cpu").share_memory_()
        self.flag = self.memory.numpy()
        self.known = False  # to the main process

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        end = _HEADER + math.prod(shape) * dtype.itemsize
        return self.memory[_HEADER:end].view(dtype).view(shape)


class _Opened:
    """A block, as the main process sees it."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._bytes = memory.numpy()
        self._lease: weakref.ref[Any] | None = None
        self._process = os.getpid()

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # An array that nothing but the tensor's memory refers to: it goes when the last view of that goes.
        lease = self._bytes[_HEADER : _HEADER + math.prod(shape) * dtype.itemsize]
        self._lease = weakref.ref(lease, self._release)
        storage = torch.from_numpy(lease).untyped_storage()
        # Set, for a view would share its version with the others in autograd's eyes. (The stubs lack this overload.)
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape)  # type: ignore[call-overload]

    def _release(self, _: Any, process: Callable[[], int] = os.getpid) -> None:
        # A fork has copies of all objects, and what it drops the process that reads may still use.
        if process() == self._process:
            self._bytes[0] = 0

    def forget(self) -> None:
        self._lease = None  # else a circle: the callback holds this


_opened: dict[tuple[int, int], _Opened] = {}  # by worker and number: batches are unpickled by functions


def open_block(
    worker: int, number: int, memory: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """The tensor in a block; ``memory`` comes along where the number is new, or means another block from now on."""
    if memory is not None:
        _forget((worker, number))
        _opened[worker, number] = _Opened(memory)
    return _opened[worker, number].tensor(shape, dtype)


def open_inline(data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the given bytes, in memory as torch aligns it."""
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    ctypes.memmove(tensor.data_ptr(), data, len(data))
    return tensor


def forget(workers: Iterable[int]) -> None:
    """Drop the blocks of workers that are gone; tensors in them live on."""
    gone = set(workers)
    for place in [place for place in _opened if place[0] in gone]:
        _forget(place)


def _forget(place: tuple[int, int]) -> None:
    opened = _opened.pop(place, None)
    if opened is not None:
        opened.forget()


class _Call:
    """What is pickled as a call, so that its result stands in its place."""

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._function, self._arguments


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether shape, dtype and the bytes in order are all there is to a tensor."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_nested or tensor.is_quantized)
        and tensor.is_contiguous()
    )
