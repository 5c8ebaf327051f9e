"""Sharded leaves: which tensors are DTensors, their local parts, and what the processes that share them hold together.

What is computed element by element is computed on the local parts, by the same kernels as for whole tensors. The rest
(norms, tests for NaN) needs the parts of all processes: `over_ranks`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, bool, int, float, complex, str))


def is_sharded(leaf: Any) -> bool:
    """Whether a leaf is a DTensor, sharded or replicated."""
    if type(leaf) in _PLAIN:
        return False
    # Importing it takes a second; where nobody has, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(leaf, module.DTensor)


def any_sharded(leaves: Sequence[Any]) -> bool:
    """Whether one of the leaves is a DTensor: quick where none is."""
    return not _PLAIN.issuperset(map(type, leaves)) and any(map(is_sharded, leaves))


class Placed(NamedTuple):
    """Where a DTensor lies: what it is beside the elements that this process holds."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def around(self, local: torch.Tensor) -> torch.Tensor:
        """The DTensor that lies so, and whose local part is ``local``, in the same memory."""
        from torch.distributed.tensor import DTensor

        with torch.no_grad():
            return DTensor.from_local(
                local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
            )


def placed(leaf: Any) -> Placed:
    """Where a DTensor lies."""
    return Placed(leaf.device_mesh, tuple(leaf.placements), leaf.shape, leaf.stride())


def local(leaf: Any) -> Any:
    """The elements of a DTensor that this process holds, in their own memory; any other leaf itself."""
    if not is_sharded(leaf):
        return leaf
    with torch.no_grad():
        return leaf.to_local()


def around(leaf: Any, like: Any) -> Any:
    """The DTensor that lies as ``like`` does and whose local part is ``leaf``; the leaf itself if ``like`` is none."""
    return placed(like).around(leaf) if is_sharded(like) else leaf


def is_replicated(leaf: Any) -> bool:
    """Whether every process holds all elements."""
    return not is_sharded(leaf) or all(placement.is_replicate() for placement in leaf.placements)


def mesh_of(leaves: Iterable[Any]) -> Any:
    """The mesh of the DTensors among ``leaves``.

    Raises:
        ValueError: they lie on several meshes, or on one of several dimensions.
    """
    meshes: list[Any] = []
    for leaf in leaves:
        if is_sharded(leaf) and leaf.device_mesh not in meshes:
            meshes.append(leaf.device_mesh)
    if len(meshes) != 1 or meshes[0].ndim != 1:
        shapes = ", ".join(str(tuple(mesh.shape)) for mesh in meshes)
        raise ValueError(f"sharded leaves must lie on one mesh of one dimension, got {len(meshes)}: {shapes}")
    return meshes[0]


def over_ranks(mesh: Any, values: torch.Tensor) -> torch.Tensor:
    """The ``values`` (of one dimension) of all processes of a mesh, a row for each in the order of ranks."""
    rows = torch.empty((mesh.size(), values.numel()), dtype=values.dtype, device=values.device)
    torch.distributed.all_gather_single(rows.view(-1), values.contiguous(), group=mesh.get_group())
    return rows
