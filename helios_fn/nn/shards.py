"""Gradients by sharded params. They are summed over the processes while they are taken, and stay sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import accumulate, tree
from ..distributed.gradients import Derivation, check_even, weighted_index
from ..dtensors import Placed, any_sharded, is_sharded, local, mesh_of, placed
from ..types import Aux, Tree
from .mean import Mean
from .report import read_weight


def check_unsharded(leaves: Sequence[Any], argnum: int) -> None:
    """Refuse sharded leaves where gradients are taken by ``torch.func``, which would lose their sum over processes.

    Raises:
        TypeError: there are some.
    """
    if any_sharded(leaves):
        raise TypeError(
            f"argument {argnum} of the function holds sharded tensors (DTensors), whose gradients cannot be taken in a "
            "compiled region, under a torch.func transform, in inference mode, with higher_order, or where they "
            "require grad: take them outside of these, on detached params"
        )


def sharded_derivatives(
    derivation: Derivation, loss: torch.Tensor, aux: Any, leaves: Sequence[Any]
) -> list[torch.Tensor | None]:
    """The gradient of ``loss`` by each leaf; inside of `microsteps` by sharded ones times the weight of ``aux``.

    Raises:
        TypeError: the loss uses a sharded leaf that was not gathered.
    """
    index = weighted_index()
    if index is not None:
        derivation.weight = read_weight(aux.weight if isinstance(aux, Aux) else 1, index)
    found = derivation.derivatives(loss, leaves)
    for leaf, gradient in zip(leaves, found, strict=True):
        if gradient is not None and is_sharded(leaf) and not derivation.was_gathered(leaf):
            raise TypeError(
                f"the loss uses a sharded tensor, {tree.describe(leaf)}, as a DTensor, so that its gradient is no sum "
                "over the processes' micro-batches: use the tensors of hf.distributed.gathered(params) in its place"
            )
    return found


def check_even_shards(params: Tree, count: int) -> None:
    """On a process without a micro-batch: say what those that have some say, if params are sharded.

    Raises:
        ValueError: they are.
    """
    leaves = tree.leaves(params)
    if any_sharded(leaves):
        check_even(count, mesh_of(leaves).size())


class Shards:
    """Sums the sharded gradients of an iteration, which are weighted and summed over the processes already.

    They are taken out of the results of micro-batches, whose other parts are reduced as ever, and put back into the
    mean. In between the sum is held in local parts, half precisions in float32.
    """

    def __init__(self) -> None:
        self._treespec: Any = None
        self._is_sharded: list[bool] = []
        self._places: list[Placed] = []
        self._dtypes: list[torch.dtype] = []
        self._sum: list[torch.Tensor] = []

    def taken(self, result: Mean, buffers: Tree) -> Mean:
        """The result of a micro-batch with the list of its other gradients in the place of all.

        Raises:
            TypeError: it has a sharded buffer that differs from that of the state.
        """
        _check_same_shards(result.buffers, buffers)
        leaves, treespec = tree.flatten(result.grads)
        mine_or_not = [is_sharded(leaf) for leaf in leaves]
        mine = [leaf for leaf, sharded in zip(leaves, mine_or_not, strict=True) if sharded]
        term = accumulate.scale([local(leaf) for leaf in mine], 1)
        if self._treespec is None:
            self._treespec, self._is_sharded, self._sum = treespec, mine_or_not, term
            self._places, self._dtypes = [placed(leaf) for leaf in mine], [leaf.dtype for leaf in mine]
        else:
            accumulate.add_(self._sum, term)
        others = [leaf for leaf, sharded in zip(leaves, mine_or_not, strict=True) if not sharded]
        return result._replace(grads=others)

    def put_back(self, mean: Mean) -> Mean:
        """The mean of all processes' micro-batches with all gradients; itself if none is sharded."""
        if self._treespec is None:
            return mean
        means = accumulate.divide(self._sum, mean.weight)
        rows = zip(self._places, means, self._dtypes, strict=True)
        mine, others = iter([place.around(leaf.to(dtype)) for place, leaf, dtype in rows]), iter(mean.grads)
        grads = [next(mine if sharded else others) for sharded in self._is_sharded]
        return mean._replace(grads=tree.unflatten(self._treespec, grads))


def _check_same_shards(new: Tree, buffers: Tree) -> None:
    kept = set(map(id, tree.leaves(buffers)))
    for path, leaf in tree.items(new):
        if is_sharded(leaf) and id(leaf) not in kept:
            raise TypeError(
                f"the buffer {path} is sharded and changes: only buffers that stay as they are can be sharded"
            )
