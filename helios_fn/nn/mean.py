"""The results of micro-batches as terms of a sum, and the sum as their mean."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Self

import torch

from .. import accumulate, tree
from ..distributed.buckets import buckets
from ..distributed.reduction import Block, Term
from ..distributed.rooms import Loose, Packing
from ..signature import Signature
from ..tracing import is_traced
from ..types import Json, Tree
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


class Facts(NamedTuple):
    """What one cannot know of the results of micro-batches before the first of them, ``index``, has been seen."""

    index: int  # type: ignore[assignment]  # hides tuple.index, of no use here
    names: list[str]
    scalar_dtypes: list[torch.dtype]
    grad_dtypes: list[torch.dtype]
    unchanged: frozenset[int]

    def to_json(self) -> Json:
        """As plain values, for a process that has no micro-batch."""
        dtypes: Any = [
            [str(dtype).removeprefix("torch.") for dtype in each] for each in (self.scalar_dtypes, self.grad_dtypes)
        ]
        return [self.index, list(self.names), *dtypes, list[Json](sorted(self.unchanged))]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of `to_json`."""
        index, names, *dtypes, unchanged = data
        scalars, grads = ([getattr(torch, name) for name in each] for each in dtypes)
        return cls(index, names, scalars, grads, frozenset(unchanged))


class Layout:
    """How results of one iteration become terms to be summed, and how sums become their mean.

    A term has four groups: scalars (weight, loss, metrics), gradients, changes of floating point buffers,
    and other buffers. Of plain tensors it is packed: one vector for each dtype, so that sums have few calls to make and
    a message needs no copy.

    The layout is fixed by the first result. Buffers that it returns unchanged (the very tensors of the state, as frozen
    weights are) cost nothing. What was found out about the results of one iteration mostly holds for the next: see
    `kept` and `again`.

    Args:
        facts: what the first result looks like.
        grads: any tree of tensors in the shapes and the structure of the gradients.
        params: those of the state.
        buffers: those of the state.

    Attributes:
        facts: the same.
    """

    def __init__(self, facts: Facts, grads: Tree, params: Tree, buffers: Tree) -> None:
        self.facts = facts
        self._flatten_grads, self._flatten_buffers = tree.Flattener(), tree.Flattener()
        leaves, self._grad_spec = self._flatten_grads(grads)
        # An empty dict is not flattened: the compiler cannot see into optree's way of doing that.
        self._empty = buffers if _is_empty(buffers) else None
        self._old: list[Any] = []
        self._buffer_spec: Any = None
        if self._empty is None:
            self._old, self._buffer_spec = self._flatten_buffers(buffers)
        changed = [at for at in range(len(self._old)) if at not in facts.unchanged]
        self._floating = [at for at in changed if _is_floating(self._old[at])]
        self._other = [at for at in changed if not _is_floating(self._old[at])]
        held = tree.leaves(params)
        self._forms = _in_form_of(held, leaves)
        olds = [self._old[at] for at in changed]
        self._packs = not is_traced() and all(map(_is_plain, [*leaves, *olds]))
        self._packing: Packing | None = None
        self._like = Signature([*held, *olds]) if self._packs and all(map(_is_plain, held)) else None

    @classmethod
    def of(cls, first: Mean, index: int, params: Tree, buffers: Tree) -> Self:
        """The layout of the results that are like the ``first``, that of micro-batch ``index``."""
        names = sorted(first.metrics)
        # Nothing more of the first result is kept: its gradients would live as long as the iteration.
        scalars = [leaf.dtype for leaf in _scalars(first, names)]
        grads = [leaf.dtype for leaf in tree.leaves(first.grads)]
        layout = cls(Facts(index, names, scalars, grads, frozenset()), first.grads, params, buffers)
        new = layout._new_buffers(first, index)
        same = frozenset(at for at, (leaf, old) in enumerate(zip(new, layout._old, strict=True)) if leaf is old)
        return cls(layout.facts._replace(unchanged=same), first.grads, params, buffers) if same else layout

    def kept(self) -> Layout | None:
        """The layout without the tensors of this iteration; ``None`` where it is not to be used `again`."""
        if self._packing is None or self._like is None:
            return None
        kept = self._renewed(self.facts, [], None if self._empty is None else {})
        kept._forms = []
        return kept

    def again(self, first: Mean, index: int, params: Tree, buffers: Tree) -> Layout | None:
        """The layout of another iteration, if it is as `of` would find it; else ``None``."""
        facts, like = self.facts, self._like
        if like is None or sorted(first.metrics) != facts.names or (self._empty is None) is _is_empty(buffers):
            return None
        grads, spec = self._flatten_grads(first.grads)
        dtypes = [leaf.dtype for leaf in _scalars(first, facts.names)], [leaf.dtype for leaf in grads]
        if spec != self._grad_spec or dtypes != (facts.scalar_dtypes, facts.grad_dtypes):
            return None
        old: list[Any] = []
        if self._empty is None:
            old, spec = self._flatten_buffers(buffers)
            new, new_spec = self._flatten_buffers(first.buffers)
            if spec != self._buffer_spec or new_spec != spec:
                return None
            if facts.unchanged != {at for at, (leaf, was) in enumerate(zip(new, old, strict=True)) if leaf is was}:
                return None
        olds = [old[at] for at in range(len(old)) if at not in facts.unchanged]
        if not all(map(_is_plain, grads)) or not like.matches([*tree.leaves(params), *olds]):
            return None
        facts = facts if facts.index == index else facts._replace(index=index)
        return self._renewed(facts, old, None if self._empty is None else buffers)

    def _renewed(self, facts: Facts, old: list[Any], empty: Tree) -> Layout:
        new = object.__new__(Layout)
        new.__dict__.update(self.__dict__)
        new.facts, new._old, new._empty = facts, old, empty
        return new

    def give_back(self, blocks: list[Block]) -> None:
        """Keep the memory of these sums for the next iteration: nobody needs them any more."""
        if self._packing is not None:
            self._packing.give_back([block.term for block in blocks])

    def term(self, result: Mean, index: int) -> Term | Loose:
        """The weighted term of micro-batch ``index``. It may have no memory of its own yet: push it into a sum.

        Raises:
            ValueError: the result does not fit the layout.
        """
        facts = self.facts
        if sorted(result.metrics) != facts.names:
            raise ValueError(
                f"all micro-batches must report the same metrics: {facts.names} in micro-batch "
                f"{facts.index}, {sorted(result.metrics)} in micro-batch {index}"
            )
        weight, new = result.weight, self._new_buffers(result, index)
        for at in facts.unchanged:
            if new[at] is not self._old[at]:
                raise ValueError(
                    f"micro-batch {index} changes the buffer {tree.paths(result.buffers)[at]}, but micro-batch "
                    f"{facts.index} returned it as it was: return new buffers from all or from none"
                )
        grads, _ = self._flatten_grads(result.grads)
        groups = [
            _scalars(result, facts.names),
            grads,
            [_change(new[at], self._old[at]) for at in self._floating],
            [new[at] for at in self._other],
        ]
        # Of other buffers only those of micro-batch 0 count. As a sum with zeros this needs no exchange of its own.
        if self._packs:
            return self._packed(groups, weight, 1 if index == 0 else 0)
        scalars, grads, changes = (accumulate.scale(group, weight) for group in groups[:3])
        return [[_as_tensor(weight), *scalars], grads, changes, accumulate.scale(groups[3], 1 if index == 0 else 0)]

    def _packed(self, groups: list[list[torch.Tensor]], weight: Weight, weight_of_others: int) -> Loose:
        *floating, others = groups
        # One times the weight is the weight: so it need not be told from what is multiplied by it.
        leaves = [_one(weight), *(leaf for group in floating for leaf in group), *others]
        if self._packing is None:
            old = [self._old[at] for at in (*self._floating, *self._other)]
            forms = [_one(weight), *floating[0], *self._forms, *old]
            dtypes = [accumulate.accumulator_dtype(leaf) for leaf in leaves]
            self._packing = Packing(buckets(forms, dtypes=dtypes, in_memory_order=True), leaves)
        return Loose(self._packing, leaves, weight, weight_of_others)

    def empty_term(self, params: Tree) -> Term:
        """A term like those of `term`, of zeros, on the devices of ``params``; for a process without a micro-batch."""
        leaves, _ = self._flatten_grads(params)
        facts = self.facts
        device = leaves[0].device
        scalars = [torch.zeros((), dtype=dtype, device=device) for dtype in facts.scalar_dtypes]
        grads = [torch.empty_like(leaf, dtype=dtype) for leaf, dtype in zip(leaves, facts.grad_dtypes, strict=True)]
        if self._packs:
            old = [[self._old[at] for at in group] for group in (self._floating, self._other)]
            return self._packed([scalars, grads, *old], 0, 0).packed()
        return [
            [_as_tensor(torch.zeros((), device=device)), *accumulate.zeros(scalars)],
            accumulate.zeros(grads),
            accumulate.zeros([self._old[at] for at in self._floating]),
            accumulate.zeros([self._old[at] for at in self._other]),
        ]

    def mean(self, total: Term) -> Mean:
        """The mean from the sum of all terms."""
        weight, (scalars, grads, changes, others) = self._divided(total)
        loss, *metrics = _cast(scalars, self.facts.scalar_dtypes)
        buffers = list(self._old)
        for at, change in zip(self._floating, changes, strict=True):
            buffers[at] = torch.where(change == 0, buffers[at], (buffers[at] + change).to(buffers[at].dtype))
        for at, leaf in zip(self._other, others, strict=True):
            buffers[at] = _choose(weight == 0, buffers[at], leaf)
        return Mean(
            loss,
            tree.unflatten(self._grad_spec, _cast(grads, self.facts.grad_dtypes)),
            tree.unflatten(self._buffer_spec, buffers) if self._empty is None else self._empty,
            dict(zip(self.facts.names, metrics, strict=True)),
            weight,
        )

    def _divided(self, total: Term) -> tuple[Weight, Term]:
        """The total weight, and the groups of a sum: all but the other buffers divided by it."""
        packing = self._packing
        if packing is None:
            (weights, *scalars), grads, changes, others = total
            weight = _known(weights)
            return weight, [*(accumulate.divide(group, weight) for group in (scalars, grads, changes)), others]
        # Nothing of the sum itself is handed on: its memory serves again.
        packs = list(zip(packing.buckets, total[0], strict=True))
        weight = _known(next(flat[0] for bucket, flat in packs if bucket.places[0] == 0))
        # Whole vectors are divided, not the leaves in them one by one.
        quotients = iter(accumulate.divide([flat for bucket, flat in packs if bucket.is_floating], weight))
        flats = [next(quotients) if bucket.is_floating else flat.clone() for bucket, flat in packs]
        leaves = iter(packing.leaves(flats)[1:])
        sizes = (len(self.facts.scalar_dtypes), len(self.facts.grad_dtypes), len(self._floating), len(self._other))
        return weight, [list(itertools.islice(leaves, size)) for size in sizes]

    def _new_buffers(self, result: Mean, index: int) -> list[Any]:
        if self._empty is not None and _is_empty(result.buffers):
            return []
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


def _is_empty(buffers: Tree) -> bool:
    return type(buffers) is dict and not buffers


def _scalars(result: Mean, names: list[str]) -> list[torch.Tensor]:
    return [result.loss, *(result.metrics[name] for name in names)]


def _cast(leaves: list[torch.Tensor], dtypes: list[torch.dtype]) -> list[torch.Tensor]:
    return [leaf if leaf.dtype == dtype else leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]


def _known(weight: torch.Tensor) -> Weight:
    if is_traced():
        return weight
    return weight.item() if weight.is_cpu else weight.clone()


def _change(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    # Not the difference alone: a constant infinity (as in an attention mask) would become NaN.
    return torch.where(new == old, 0, new - old)


def _choose(condition: bool | torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, left, right)
    return left if condition else right


def _one(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor):
        return torch.ones((), dtype=torch.float64)
    return torch.ones((), dtype=torch.float32 if weight.device.type == "mps" else torch.float64, device=weight.device)


def _in_form_of(params: list[torch.Tensor], grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """What says in which order the elements of gradients are packed: the same on every process.

    That of the parameters, as optimisers like it. The gradients' own may depend on the size of a batch.
    """
    if [leaf.shape for leaf in params] == [leaf.shape for leaf in grads]:
        return params
    return [leaf.new_empty(leaf.shape) for leaf in grads]


def _is_plain(leaf: torch.Tensor) -> bool:
    return type(leaf) is torch.Tensor and leaf.layout == torch.strided and not leaf.requires_grad


def _as_tensor(weight: Weight) -> torch.Tensor:
    if not isinstance(weight, torch.Tensor):
        return torch.tensor(weight, dtype=torch.float64)
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64, copy=True)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
