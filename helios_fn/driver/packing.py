"""Messages and tensors between processes, whatever they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from .. import tree
from ..distributed import World
from ..types import Json

Layout: TypeAlias = list[tuple[str, list[int]]]
"""The dtype (by name) and shape of each tensor."""


def said_by_all(message: Json, world: World) -> list[Json]:
    """The messages of all processes, by rank."""
    data = json.dumps(message).encode()
    lengths = world.gather(torch.tensor([len(data)]), [1] * world.size)
    parts = world.gather(torch.frombuffer(bytearray(data), dtype=torch.uint8), [int(length) for length in lengths])
    return [json.loads(part.numpy().tobytes()) for part in parts]


def gathered(tensors: Sequence[torch.Tensor], world: World) -> list[list[torch.Tensor]]:
    """The CPU tensors of all processes, by rank; each may have others, and another number of them."""
    layouts: list[Any] = said_by_all(_layout(tensors), world)  # type: ignore[arg-type]
    parts = world.gather(_bytes(tensors), [_size(layout) for layout in layouts])
    return [_tensors(part, layout) for part, layout in zip(parts, layouts, strict=True)]


def told(tensors: Sequence[torch.Tensor], world: World, source: int) -> list[torch.Tensor]:
    """The CPU tensors of rank ``source``, in every process; what the others hand over is ignored."""
    layout: Any = world.tell_all(_layout(tensors), source)  # type: ignore[arg-type]
    flat = _bytes(tensors) if world.rank == source else torch.empty(_size(layout), dtype=torch.uint8)
    world.broadcast_(flat, source)
    return _tensors(flat, layout)


def _layout(tensors: Sequence[torch.Tensor]) -> Layout:
    return [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for tensor in tensors]


def _empty(dtype: str, shape: list[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype))


def _size(layout: Layout) -> int:
    return sum(_empty(dtype, [0]).element_size() * torch.Size(shape).numel() for dtype, shape in layout)


def _bytes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    whole = bytearray().join(tree.tensor_bytes(tensor) for tensor in tensors)
    return torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.empty(0, dtype=torch.uint8)


def _tensors(flat: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    found, at = [], 0
    for dtype, shape in layout:
        tensor = _empty(dtype, shape)
        size = tensor.numel() * tensor.element_size()
        # Copied, for a view of another dtype must be aligned.
        tensor.view(-1).view(torch.uint8).copy_(flat[at : at + size])
        found.append(tensor)
        at += size
    return found
