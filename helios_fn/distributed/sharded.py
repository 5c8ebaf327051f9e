"""States whose tensors are spread over the processes of a mesh, for models that do not fit on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from .. import tree
from ..dtensors import Placed, is_sharded, mesh_of
from ..tracing import is_traced
from ..types import Tree
from .gathering import Gather, is_placement, own_piece, problem
from .gradients import current_derivation

Rule: TypeAlias = Callable[[str, torch.Tensor], Sequence[Any]]
"""``rule(path, tensor) -> placements``, one placement for each dimension of the mesh."""


def shard(params: Tree, mesh: Any, rule: Rule | None = None) -> Tree:
    """The tree with its tensors as DTensors, of which each process of ``mesh`` keeps its part.

    Every process hands over the same values, such as the ``params`` that `helios_fn.functional` makes of a seed, and
    cuts out its own; nothing is sent. An optimiser's ``init`` of the result makes memory that is sharded alike. Leaves
    that are not floating point or have no dimensions stay as they are: every process holds all of them.

    Args:
        params: a tree of tensors.
        mesh: a ``torch.distributed.DeviceMesh`` of one dimension over all processes.
        rule: the placements of a tensor by its path (as in `helios_fn.tree.paths`), ``[Shard(dim)]`` or
            ``[Replicate()]`` of ``torch.distributed.tensor``. By default tensors are cut along their first dimension,
            and those that have less than one row for each process are replicated.

    Raises:
        ValueError: the mesh has several dimensions, or ``rule`` returns something else.
        TypeError: ``mesh`` is no mesh, or a leaf is sharded already.
    """
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a torch.distributed DeviceMesh, got {tree.describe(mesh)}")
    if mesh.ndim != 1:
        raise ValueError(f"the mesh must have one dimension, over all processes; got {tuple(mesh.shape)}")
    leaves, treespec = tree.flatten(params)
    named = zip(tree.paths(params), leaves, strict=True)
    return tree.unflatten(treespec, [_shard_leaf(path, leaf, mesh, rule or _by_rows(mesh)) for path, leaf in named])


def gathered(params: Tree) -> Tree:
    """The tree with its DTensors as ordinary tensors that hold all elements, differentiably.

    Call it in a ``loss_fn`` on the sharded params, or on the part of them that the next layers need. It is collective:
    every process makes the same calls in the same order. Derivatives by the params come back as sharded as these are,
    *summed over the processes*; in a step, each process's share is first multiplied by the weight that its `Aux` gives,
    and the sum divided by the total weight of the iteration. The sum is taken in float32 for half precisions, and over
    ranks in the order of the binary tree that ``reduction="tree"`` names. Outside of a loss it is the way to whole
    tensors for an evaluation or an export.

    Other leaves stay as they are, and replicated ones keep their memory. The whole parameters take up memory as long
    as something refers to them: the graph does, until the backward pass has used them. To hold one layer's at a time,
    gather inside of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``.

    Raises:
        TypeError: a leaf is placed otherwise than by ``Shard`` and ``Replicate``, or is float16 and to be
            differentiated; in a compiled region or under a ``torch.func`` transform; inside of `microsteps`, but in a
            gradient function that was not made by `value_and_grad`.
        ValueError: the leaves lie on several meshes; in an iteration that does not have the same number of
            micro-batches for each process.
    """
    leaves, treespec = tree.flatten(params)
    places = [at for at, leaf in enumerate(leaves) if is_sharded(leaf)]
    if not places:
        return params
    if is_traced():
        raise TypeError(
            "sharded params cannot be gathered in a compiled region or under a torch.func transform: take gradients by "
            "hf.value_and_grad or hf.make_step, and do not compile"
        )
    sharded = [leaves[at] for at in places]
    derivation = current_derivation(mesh_of(sharded))
    for at in places:
        flaw = problem(leaves[at])
        if flaw is not None:
            raise TypeError(f"{tree.paths(params)[at] or 'params'} {flaw}")
    *full, anchor = Gather.apply(derivation, *sharded)
    if derivation is not None:
        derivation.record(sharded, anchor)
    for at, leaf in zip(places, full, strict=True):
        leaves[at] = leaf
    return tree.unflatten(treespec, leaves)


def _shard_leaf(path: str, leaf: Any, mesh: Any, rule: Rule) -> Any:
    if is_sharded(leaf):
        raise TypeError(f"{path or 'params'} is sharded already: shard a tree of ordinary tensors")
    if not isinstance(leaf, torch.Tensor) or not leaf.dim() or not (leaf.is_floating_point() or leaf.is_complex()):
        return leaf
    placements = rule(path, leaf)
    if not isinstance(placements, list | tuple) or len(placements) != 1 or not is_placement(placements[0], leaf):
        raise ValueError(
            f"rule must return [Shard(dim)] or [Replicate()] with a dim of the tensor, got {placements!r} for "
            f"{path or 'params'}, {tree.describe(leaf)}"
        )
    where = Placed(mesh, tuple(placements), leaf.shape, torch.empty_like(leaf, device="meta").contiguous().stride())
    return where.around(own_piece(where, leaf.detach()))


def _by_rows(mesh: Any) -> Rule:
    from torch.distributed.tensor import Replicate, Shard

    return lambda path, tensor: [Shard(0) if tensor.shape[0] >= mesh.size() else Replicate()]
