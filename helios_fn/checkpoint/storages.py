"""Tensors as ranges of bytes: leaves that share memory are stored once and come back sharing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from .leaves import DTYPE_NAMES, DTYPES, TensorSpec


class Extent(NamedTuple):
    """A range of bytes within a storage, ``start`` included, ``stop`` not."""

    start: int
    stop: int


class Range(NamedTuple):
    """The part of one storage that the leaves in ``views`` look at.

    ``views`` are pairs of a leaf's number and the leaf; ``extent`` begins at a multiple of the largest
    element size, so that each view begins at a whole element of its dtype. ``whole`` is the first view that
    is the range itself in row-major order, if there is one.
    """

    views: tuple[tuple[int, torch.Tensor], ...]
    extent: Extent
    whole: int | None

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.extent.stop - self.extent.start


def extent_of(tensor: torch.Tensor) -> Extent:
    """The bytes of its storage between a tensor's first and last element."""
    itemsize = tensor.element_size()
    if tensor.is_contiguous():  # quicker, and nearly always so
        start = int(tensor.storage_offset()) * itemsize
        return Extent(start, start + max(tensor.numel(), 1) * itemsize)
    return _extent(int(tensor.storage_offset()), tensor.shape, tensor.stride(), itemsize)


def extent_of_spec(spec: TensorSpec) -> Extent:
    """The same for a stored tensor, within its stored range."""
    return _extent(spec.offset, spec.shape, spec.strides, DTYPES[spec.dtype].itemsize)


def group(tensors: Sequence[torch.Tensor]) -> tuple[list[Range], list[TensorSpec]]:
    """The ranges of bytes to store for ``tensors``, and where each tensor lies in them.

    A range covers what the leaves use of a storage and no more. Wide elements come first, so that in a
    file without gaps each range begins at a multiple of its element size; within one size the order
    is that of the leaves.
    """
    by_storage: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for number, tensor in enumerate(tensors):
        if tensor.numel():
            # The address of the storage object: equal data pointers need not mean shared memory.
            by_storage.setdefault(tensor.untyped_storage()._cdata, []).append((number, tensor))
    ranges = [_range(views) for views in by_storage.values()]
    ranges.sort(key=lambda found: -_widest(tensor for _, tensor in found.views))
    specs = [_spec(tensor, None, 0) for tensor in tensors]
    for storage, found in enumerate(ranges):
        for number, tensor in found.views:
            offset = (extent_of(tensor).start - found.extent.start) // tensor.element_size()
            specs[number] = _spec(tensor, storage, offset)
    return ranges, specs


def content(found: Range) -> memoryview:
    """The bytes of a range, copied only from a device or where no view looks at some of them.

    Those bytes read as zero: what is stored depends on the leaves' values and on nothing else.
    """
    if found.whole is not None:
        whole = found.views[found.whole][1].cpu()
        return as_bytes(whole.as_strided((whole.numel(),), (1,)).view(torch.uint8))
    with torch.no_grad():
        tensor = found.views[0][1]
        data = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        data.set_(tensor.untyped_storage(), found.extent.start, (found.size,), (1,))
        data = data.cpu()
        if not any(_is_dense(view) and extent_of(view) == found.extent for _, view in found.views):
            data = data * _seen(found)
    return as_bytes(data)


def allocate(size: int) -> torch.Tensor:
    """Fresh bytes on the CPU; torch begins them at a multiple of 64."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def as_bytes(data: torch.Tensor) -> memoryview:
    """The memory of a flat uint8 tensor on the CPU, to be read or filled."""
    return memoryview(data.numpy())  # type: ignore[arg-type]  # an array is a buffer


class Placer:
    """Turns stored ranges back into tensors, on any device, sharing memory as they did."""

    def __init__(self, ranges: Sequence[torch.Tensor]) -> None:
        self._ranges = ranges
        self._placed: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __call__(self, spec: TensorSpec, device: torch.device) -> torch.Tensor:
        """The tensor that ``spec`` describes, on ``device``; to be called without recording gradients."""
        tensor = torch.empty(0, dtype=DTYPES[spec.dtype], device=device)
        if spec.storage is None:
            return tensor.as_strided(spec.shape, spec.strides)
        place = spec.storage, device
        if place not in self._placed:
            found = self._ranges[spec.storage]
            self._placed[place] = found if found.device == device else found.to(device)
        return tensor.set_(self._placed[place].untyped_storage(), spec.offset, spec.shape, spec.strides)


def check(specs: Sequence[TensorSpec], sizes: Sequence[int]) -> None:
    """Check that stored tensors lie within the stored ranges, and that each range is used to its end.

    Raises:
        ValueError: they do not.
    """
    ends = [0] * len(sizes)
    for spec in specs:
        if spec.storage is None:
            if 0 not in spec.shape:
                raise ValueError(f"{spec} has elements but no storage")
            continue
        if 0 in spec.shape or not 0 <= spec.storage < len(sizes):
            raise ValueError(f"{spec} has no elements, or lies in storage {spec.storage} of {len(sizes)}")
        ends[spec.storage] = max(ends[spec.storage], extent_of_spec(spec).stop)
    if ends != list(sizes):
        raise ValueError("the tensors do not fill the stored ranges of bytes")


def _range(views: Sequence[tuple[int, torch.Tensor]]) -> Range:
    extent = _union([tensor for _, tensor in views])
    whole = (place for place, (_, view) in enumerate(views) if view.is_contiguous() and extent_of(view) == extent)
    return Range(tuple(views), extent, next(whole, None))


def _extent(offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int) -> Extent:
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return Extent(offset * itemsize, (offset + last + 1) * itemsize)


def _union(tensors: Sequence[torch.Tensor]) -> Extent:
    extents = [extent_of(tensor) for tensor in tensors]
    start = min(extent.start for extent in extents)
    start -= start % _widest(tensors)
    return Extent(start, max(extent.stop for extent in extents))


def _widest(tensors: Iterable[torch.Tensor]) -> int:
    return max(tensor.element_size() for tensor in tensors)


def _spec(tensor: torch.Tensor, storage: int | None, offset: int) -> TensorSpec:
    return TensorSpec(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tuple(tensor.stride()), storage, offset)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill its extent, each byte once."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _seen(found: Range) -> torch.Tensor:
    """One for each byte of a range that some view looks at, zero for the others."""
    seen = torch.zeros(found.size, dtype=torch.uint8, device="cpu")
    for _, view in found.views:
        itemsize = view.element_size()
        # Writing to an expanded dimension is an error; its first index reaches all its bytes.
        shape = [1 if stride == 0 else size for size, stride in zip(view.shape, view.stride(), strict=True)]
        strides = [stride * itemsize for stride in view.stride()]
        offset = extent_of(view).start - found.extent.start
        seen.as_strided((*shape, itemsize), (*strides, 1), offset).fill_(1)
    return seen
