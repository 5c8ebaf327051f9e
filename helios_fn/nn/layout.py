"""The results of micro-batches as terms of a sum, and the sum as their mean."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Self

import torch

from .. import accumulate, tree
from ..distributed.buckets import buckets
from ..distributed.reduction import Term
from ..distributed.rooms import Loose, Packing
from ..signature import Signature
from ..tracing import is_traced
from ..types import Json, Tree
from .mean import Mean
from .report import Weight


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
        self._flatten_grads, self._flatten_buffers, self._flatten_params = (tree.Flattener() for _ in range(3))
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
        self._one: torch.Tensor | None = None
        self._keep_dtypes = False
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

    def again(self, first: Mean, index: int, params: Tree, buffers: Tree) -> tuple[Layout, Loose] | None:
        """The layout of another iteration and its first term, if `of` would find the same; else ``None``."""
        facts, like = self.facts, self._like
        if like is None or sorted(first.metrics) != facts.names or (self._empty is None) is _is_empty(buffers):
            return None
        old: list[Any] = []
        if self._empty is None:
            old, spec = self._flatten_buffers(buffers)
            new, new_spec = self._flatten_buffers(first.buffers)
            if spec != self._buffer_spec or new_spec != spec:
                return None
            if facts.unchanged != {at for at, (leaf, was) in enumerate(zip(new, old, strict=True)) if leaf is was}:
                return None
        held, _ = self._flatten_params.outside(params)
        if not like.matches([*held, *(old[at] for at in range(len(old)) if at not in facts.unchanged)]):
            return None
        if facts.index != index:
            facts = facts._replace(index=index)
        layout = self._renewed(facts, old, None if self._empty is None else buffers)
        try:
            term = layout.term(first, index)
        except ValueError:
            return None
        return (layout, term) if isinstance(term, Loose) and term.matching else None

    def _renewed(self, facts: Facts, old: list[Any], empty: Tree) -> Layout:
        new = object.__new__(Layout)
        new.__dict__.update(self.__dict__)
        new.facts, new._old, new._empty = facts, old, empty
        return new

    def give_back(self, terms: list[Term]) -> None:
        """Keep the memory of these sums for the next iteration: nobody needs them any more."""
        if self._packing is not None:
            self._packing.give_back(*terms)

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
        grads, spec = self._flatten_grads(result.grads)
        if spec is not self._grad_spec and not is_traced() and spec != self._grad_spec:
            raise ValueError(
                f"the gradients of micro-batch {index} have another structure than those of micro-batch {facts.index}: "
                f"{spec} != {self._grad_spec}"
            )
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
        one = self._one if self._one is not None and not isinstance(weight, torch.Tensor) else _one(weight)
        leaves = [one, *itertools.chain.from_iterable(floating), *others]
        packing = self._packing
        if packing is None:
            old = [self._old[at] for at in (*self._floating, *self._other)]
            dtypes = [accumulate.accumulator_dtype(leaf) for leaf in leaves]
            found = buckets([one, *floating[0], *self._forms, *old], dtypes=dtypes, in_memory_order=True)
            packing = self._packing = Packing(found, leaves)
            self._one = None if isinstance(weight, torch.Tensor) else one
            self._keep_dtypes = dtypes == [leaf.dtype for leaf in leaves]
        matching = packing.matches(leaves)
        if not matching:
            packing.check(leaves)
            leaves = [leaf.detach() for leaf in leaves]
        return Loose(packing, leaves, weight, weight_of_others, matching=matching)

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
        if not self._keep_dtypes:
            scalars, grads = _cast(scalars, self.facts.scalar_dtypes), _cast(grads, self.facts.grad_dtypes)
        loss, *metrics = scalars
        buffers: Tree = self._empty
        if self._empty is None:
            leaves = list(self._old)
            for at, change in zip(self._floating, changes, strict=True):
                leaves[at] = torch.where(change == 0, leaves[at], (leaves[at] + change).to(leaves[at].dtype))
            for at, leaf in zip(self._other, others, strict=True):
                leaves[at] = _choose(weight == 0, leaves[at], leaf)
            buffers = tree.unflatten(self._buffer_spec, leaves)
        grads_tree = tree.unflatten(self._grad_spec, grads) if is_traced() else self._grad_spec.unflatten(grads)
        return Mean(loss, grads_tree, buffers, dict(zip(self.facts.names, metrics, strict=True)), weight)

    def _divided(self, total: Term) -> tuple[Weight, Term]:
        """The total weight, and the groups of a sum: all but the other buffers divided by it."""
        packing = self._packing
        if packing is None:
            (weights, *scalars), grads, changes, others = total
            weight = _known(weights)
            return weight, [*(accumulate.divide(group, weight) for group in (scalars, grads, changes)), others]
        # Whole vectors are divided, not the leaves in them one by one. Nothing of the sum itself is handed on, for its
        # memory serves again; and of the weight alone, the first leaf, nobody needs the quotient.
        vectors = total[0]
        weight = _known(vectors[packing.first][0])
        divided: list[torch.Tensor | None] = [
            None if each.places == (0,) else vector for each, vector in zip(packing.buckets, vectors, strict=True)
        ]
        places = [at for at, each in enumerate(packing.buckets) if each.is_floating and divided[at] is not None]
        for at, quotient in zip(places, accumulate.divide([vectors[at] for at in places], weight), strict=True):
            divided[at] = quotient
        leaves = packing.leaves(divided)
        counts = (1, len(self.facts.scalar_dtypes), len(self.facts.grad_dtypes), len(self._floating))
        ends = list(itertools.accumulate(counts))
        groups = [leaves[start:end] for start, end in itertools.pairwise(ends)]
        return weight, [*groups, [leaf.clone() for leaf in leaves[ends[-1] :]]]

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
