"""What a metric is: how totals are begun, extended by a batch, merged, and turned into results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .. import tree
from ..types import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What a metric found on some samples: its ``total``, a tree of tensors, and the metric that understands it."""

    metric: Metric
    total: Tree

    def merge(self, other: Measured) -> Measured:
        """What was found on these samples and the ``other`` ones, which come after them.

        Raises:
            ValueError: ``other`` has a total of another form.
        """
        here, there = form_of(self.total), form_of(other.total)
        if here != there:
            raise ValueError(f"these totals are not of one metric: {_words(here)}, and {_words(there)}")
        return Measured(self.metric, self.metric.merge(self.total, other.total))

    def compute(self) -> Any:
        """The result: a number, a tensor, or a dict of these by name."""
        return self.metric.compute(self.total)


class Metric(NamedTuple):
    """A metric as pure functions of a *total*: a tree of tensors whose structure, shapes and dtypes never change.

    Laws: ``update(total, values)`` equals ``merge(total, update(init(), values))``; ``merge`` is associative, and
    ``merge(init(), total)`` is ``total``. Where no leaf of a total is floating (counts, in int64) both hold bit for
    bit, and the result depends on nothing but the samples. Where some are (sums, in float64) both hold to rounding; so
    an evaluation keeps one total for each batch and merges them in the order of the batches, which gives the same bits
    for any number of processes.

    Call a metric on a batch, ``metric(*values)``, to get what it `Measured` there.

    Attributes:
        init: ``init() -> total``, of no samples.
        update: ``update(total, *values) -> total``, with the samples of ``values`` added. Writes to no input.
        merge: ``merge(left, right) -> total``, of the samples of both; those of ``left`` come first.
        compute: ``compute(total)`` -> a number, a tensor, or a dict of these by name. In an evaluation, results in a
            dict are named ``name/key``; those that are scalars can be logged and watched.
    """

    init: Callable[[], Tree]
    update: Callable[..., Tree]
    merge: Callable[[Tree, Tree], Tree]
    compute: Callable[[Tree], Any]

    def __call__(self, *values: Any, **keywords: Any) -> Measured:
        """What the metric finds in one batch."""
        return Measured(self, self.update(self.init(), *values, **keywords))

    def __repr__(self) -> str:
        return repr(getattr(self.update, "__self__", self.update))


def added(left: Tree, right: Tree) -> Tree:
    """``merge`` of totals that are sums."""
    return tree.map(torch.add, left, right)


def form_of(total: Tree) -> list[tuple[str, str]]:
    """The paths of a total with dtype and shape; equal for all totals of one metric.

    Raises:
        TypeError: a leaf is no tensor.
    """
    for path, leaf in tree.items(total):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"the total of a metric is made of tensors, but {path or 'it'} is {tree.describe(leaf)}")
    return [(path, tree.describe(leaf)) for path, leaf in tree.items(total)]


def is_exact(total: Tree) -> bool:
    """Whether totals of this form are merged without rounding, in whatever groups."""
    return not any(leaf.is_floating_point() or leaf.is_complex() for leaf in tree.leaves(total))


def results(name: str, computed: Any) -> dict[str, float | torch.Tensor]:
    """What ``compute`` returned, by name: scalars as floats, all else as tensors.

    Raises:
        TypeError: it is neither a number nor a tensor, nor a dict of these by text.
    """
    if isinstance(computed, Mapping):
        found: dict[str, float | torch.Tensor] = {}
        for key, value in computed.items():
            found.update(results(f"{name}/{key}", value))
        return found
    if isinstance(computed, torch.Tensor):
        return {name: float(computed) if computed.dim() == 0 else computed.detach().cpu()}
    if isinstance(computed, int | float):
        return {name: float(computed)}
    raise TypeError(
        f"metric {name!r} computed {tree.describe(computed)}: return a number, a tensor, or a dict of these"
    )


def _words(form: list[tuple[str, str]]) -> str:
    return ", ".join(f"{path} {words}".strip() for path, words in form)
