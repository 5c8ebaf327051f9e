"""Trees exchanged between the processes that train together, in few messages; the identity where one is alone."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from .. import tree
from ..types import Tree
from .buckets import buckets, spread
from .world import current

Operation = Literal["sum", "mean"]


def all_reduce(values: Tree, op: Operation = "sum") -> Tree:
    """Sums or means over all processes, leaf by leaf, the same bits on each of them.

    Args:
        values: a tree of tensors, of the same structure, shapes, dtypes and devices on every process.
        op: ``"sum"`` or ``"mean"``; a mean of integers is an error.

    Returns:
        A tree of new tensors; alone, ``values`` itself.

    Raises:
        TypeError: a leaf is no tensor, or a mean of integers is asked for.
        ValueError: there is no such ``op``.
        PeerLost: another process is missing.
    """
    if op not in get_args(Operation):
        raise ValueError(f"op must be 'sum' or 'mean', got {op!r}")
    leaves, spec = _tensors(values)
    if op == "mean":
        _check_divisible(values)
    world = current()
    if world.size == 1:
        return values
    found = buckets(leaves)
    flats = [bucket.flat(leaves) for bucket in found]
    world.sum_(flats)
    if op == "mean":
        flats = [flat / world.size for flat in flats]
    return tree.unflatten(spec, spread(found, flats))


def all_gather(values: Tree) -> Tree:
    """The leaves of all processes, stacked by rank: a leaf of shape ``(...)`` becomes one of ``(processes, ...)``.

    Args:
        values: as for `all_reduce`.

    Raises:
        TypeError: a leaf is no tensor.
        PeerLost: another process is missing.
    """
    leaves, spec = _tensors(values)
    world = current()
    if world.size == 1:
        return tree.map(lambda leaf: leaf.unsqueeze(0), values)
    found = buckets(leaves)
    rows = [world.gather(bucket.flat(leaves), [bucket.numel] * world.size) for bucket in found]
    by_rank = [spread(found, flats) for flats in zip(*rows, strict=True)]
    return tree.unflatten(spec, [torch.stack(parts) for parts in zip(*by_rank, strict=True)])


def broadcast(values: Tree, source: int = 0) -> Tree:
    """The tree of rank ``source``, on every process.

    Args:
        values: as for `all_reduce`; what the other processes hand over only says what to expect.
        source: the rank whose values count.

    Raises:
        TypeError: a leaf is no tensor.
        ValueError: there is no such rank.
        PeerLost: another process is missing.
    """
    leaves, spec = _tensors(values)
    world = current()
    if not 0 <= source < world.size:
        raise ValueError(f"source={source} is no rank of {world.size} processes")
    if world.size == 1:
        return values
    found = buckets(leaves)
    flats = [bucket.flat(leaves) for bucket in found]
    for flat in flats:
        world.broadcast_(flat, source)
    return tree.unflatten(spec, spread(found, flats))


def barrier() -> None:
    """Wait until all processes have come here.

    Raises:
        PeerLost: another process is missing.
    """
    current().barrier()


def _tensors(values: Tree) -> tuple[list[torch.Tensor], Any]:
    for path, leaf in tree.items(values):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"only tensors can be exchanged: {path or 'the value'} is {tree.describe(leaf)}")
    return tree.flatten(values)


def _check_divisible(values: Tree) -> None:
    for path, leaf in tree.items(values):
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(f"a mean needs floating point: {path or 'the value'} is {tree.describe(leaf)}")
