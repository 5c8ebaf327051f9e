"""The results of micro-batches as terms of a sum, and the sum as their mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import accumulate, tree
from ..tracing import is_traced
from ..types import Tree
from .reduction import Term
from .report import Weight


class Mean(NamedTuple):
    """What the micro-batches of one iteration say together; also what a single one says.

    ``weight`` is their total weight. If it is 0, make no update.
    """

    loss: torch.Tensor
    grads: Tree
    buffers: Tree
    metrics: dict[str, torch.Tensor]
    weight: Weight


def mean_of_one(result: Mean, buffers: Tree) -> Mean:
    """The mean of one micro-batch: ``result`` itself, or zeros and the old ``buffers`` if its weight is 0."""
    weight = result.weight
    if not isinstance(weight, torch.Tensor):
        if weight != 0:
            return result
        loss, grads, metrics = tree.map(torch.zeros_like, (result.loss, result.grads, result.metrics))
        return Mean(loss, grads, buffers, metrics, weight)

    def unless_zero(new: Any, old: Any) -> Any:
        same = new is old or not isinstance(new, torch.Tensor)
        return new if same else torch.where(weight == 0, old, new)

    def or_zero(leaf: torch.Tensor) -> torch.Tensor:
        return torch.where(weight == 0, 0, leaf)

    loss, grads, metrics = tree.map(or_zero, (result.loss, result.grads, result.metrics))
    return Mean(loss, grads, tree.map(unless_zero, result.buffers, buffers), metrics, weight)


class Layout:
    """How results of one iteration become terms to be summed, and how sums become their mean.

    A term has four groups: scalars (weight, loss, metrics), gradients, changes of floating point buffers,
    and other buffers.

    The layout is fixed by the first result, that of micro-batch ``index``. Buffers that it returns
    unchanged (the very tensors of the state, as frozen weights are) cost nothing.
    """

    def __init__(self, first: Mean, index: int, buffers: Tree) -> None:
        self._index = index
        self._names = sorted(first.metrics)
        self._flatten_grads, self._flatten_buffers = tree.Flattener(), tree.Flattener()
        grads, self._grad_spec = self._flatten_grads(first.grads)
        # Nothing more of the first result is kept: its gradients would live as long as the iteration.
        self._grad_dtypes = [leaf.dtype for leaf in grads]
        self._scalar_dtypes = [leaf.dtype for leaf in self._scalars(first)]
        self._old, self._buffer_spec = self._flatten_buffers(buffers)
        new = self._new_buffers(first, index)
        same = [leaf is old for leaf, old in zip(new, self._old, strict=True)]
        self._unchanged = [at for at, is_same in enumerate(same) if is_same]
        changed = [at for at, is_same in enumerate(same) if not is_same]
        self._floating = [at for at in changed if _is_floating(self._old[at])]
        self._other = [at for at in changed if not _is_floating(self._old[at])]

    def term(self, result: Mean, index: int) -> Term:
        """The weighted term of micro-batch ``index``, in new tensors.

        Raises:
            ValueError: the result does not fit the layout.
        """
        if sorted(result.metrics) != self._names:
            raise ValueError(
                f"all micro-batches must report the same metrics: {self._names} in micro-batch "
                f"{self._index}, {sorted(result.metrics)} in micro-batch {index}"
            )
        weight, new = result.weight, self._new_buffers(result, index)
        for at in self._unchanged:
            if new[at] is not self._old[at]:
                raise ValueError(
                    f"micro-batch {index} changes the buffer {tree.paths(result.buffers)[at]}, but micro-batch "
                    f"{self._index} returned it as it was: return new buffers from all or from none"
                )
        grads, _ = self._flatten_grads(result.grads)
        return [
            [_as_tensor(weight), *accumulate.scale(self._scalars(result), weight)],
            accumulate.scale(grads, weight),
            accumulate.scale([_change(new[at], self._old[at]) for at in self._floating], weight),
            # Only micro-batch 0 counts. As a sum with zeros this needs no exchange of its own.
            accumulate.scale([new[at] for at in self._other], 1 if index == 0 else 0),
        ]

    def mean(self, total: Term) -> Mean:
        """The mean from the sum of all terms."""
        (weights, *scalars), grads, changes, others = total
        weight: Weight = weights if is_traced() or weights.device.type != "cpu" else weights.item()
        loss, *metrics = _cast(accumulate.divide(scalars, weight), self._scalar_dtypes)
        buffers = list(self._old)
        for at, change in zip(self._floating, accumulate.divide(changes, weight), strict=True):
            buffers[at] = torch.where(change == 0, buffers[at], (buffers[at] + change).to(buffers[at].dtype))
        for at, leaf in zip(self._other, others, strict=True):
            buffers[at] = _choose(weight == 0, buffers[at], leaf)
        return Mean(
            loss,
            tree.unflatten(self._grad_spec, _cast(accumulate.divide(grads, weight), self._grad_dtypes)),
            tree.unflatten(self._buffer_spec, buffers),
            dict(zip(self._names, metrics, strict=True)),
            weight,
        )

    def _scalars(self, result: Mean) -> list[torch.Tensor]:
        return [result.loss, *(result.metrics[name] for name in self._names)]

    def _new_buffers(self, result: Mean, index: int) -> list[Any]:
        new, treespec = self._flatten_buffers(result.buffers)
        # Structures cannot be compared in a compiled region; zip notices what matters.
        if not torch.compiler.is_compiling() and treespec != self._buffer_spec:
            raise ValueError(
                f"micro-batch {index} returned buffers of another structure than those of the state: "
                f"{treespec} != {self._buffer_spec}"
            )
        for at, (leaf, old) in enumerate(zip(new, self._old, strict=True)):
            if leaf is not old and not isinstance(leaf, torch.Tensor):
                raise TypeError(
                    f"the buffer {tree.paths(result.buffers)[at]} is {tree.describe(leaf)}: where an iteration "
                    "has several micro-batches, a buffer that changes must be a tensor"
                )
        return new


def _cast(leaves: list[torch.Tensor], dtypes: list[torch.dtype]) -> list[torch.Tensor]:
    return [leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]


def _change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    # Not the difference alone: a constant infinity (as in an attention mask) would become NaN.
    return torch.where(new == old, 0, new - old)


def _choose(condition: bool | torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, left, right)
    return left if condition else right


def _as_tensor(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor):
        return torch.tensor(weight, dtype=torch.float64)
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64, copy=True)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
