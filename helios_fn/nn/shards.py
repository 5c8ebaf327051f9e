"""Gradients by sharded params. They are summed over the processes while they are taken, and stay sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import accumulate, tree
from ..distributed.gradients import Derivation, is_weighted
from ..dtensors import Placed, any_sharded, is_sharded, local, placed
from ..types import Aux
from .report import Weight, read_weight


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
    if is_weighted():
        derivation.weight = read_weight(aux.weight if isinstance(aux, Aux) else 1, 0)
    found = derivation.derivatives(loss, leaves)
    for leaf, gradient in zip(leaves, found, strict=True):
        if gradient is not None and is_sharded(leaf) and not derivation.was_gathered(leaf):
            raise TypeError(
                f"the loss uses a sharded tensor, {tree.describe(leaf)}, as a DTensor, so that its gradient is no sum "
                "over the processes' micro-batches: use the tensors of hf.distributed.gathered(params) in its place"
            )
    return found


class Shards:
    """Sums the sharded gradients of an iteration, which are weighted and summed over the processes already.

    Between `add` and `mean` the sum is held in local parts, half precisions in float32.
    """

    def __init__(self) -> None:
        self._places: list[Placed] = []
        self._dtypes: list[torch.dtype] = []
        self._sum: list[torch.Tensor] = []

    def add(self, grads: Sequence[Any]) -> None:
        """Add the gradients of one more micro-batch of each process."""
        term = accumulate.scale([local(leaf) for leaf in grads], 1)
        if self._places:
            accumulate.add_(self._sum, term)
            return
        self._places, self._dtypes = [placed(leaf) for leaf in grads], [leaf.dtype for leaf in grads]
        self._sum = term

    def mean(self, weight: Weight) -> list[Any]:
        """The sum divided by the total weight."""
        means = accumulate.divide(self._sum, weight)
        rows = zip(self._places, means, self._dtypes, strict=True)
        return [place.around(mean.to(dtype)) for place, mean, dtype in rows]
