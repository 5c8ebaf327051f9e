"""What a gathering of sharded params has to know of the gradient that it is part of.

`microsteps` opens an `Iteration` and `value_and_grad` a `Derivation`; `gathered` finds both. In threads of their own
each has none, like the backward pass on an accelerator: what it needs of them is handed over with the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Self

import torch

from ..types import Scalar


class _Current(threading.local):
    iteration: Iteration | None = None
    derivation: Derivation | None = None


_current = _Current()


class Iteration:
    """One micro-batch of an iteration that has ``count`` over all processes; a context manager.

    Attributes:
        count: see above.
        index: of the micro-batch within the iteration.
        weighted: whether its gradients will be part of a weighted mean.
        sharded: whether some are by sharded params, as `weighted_index` notes.
    """

    __slots__ = ("_outer", "count", "index", "sharded", "weighted")

    def __init__(self, count: int, index: int = 0, *, weighted: bool) -> None:
        self.count = count
        self.index = index
        self.weighted = weighted
        self.sharded = False

    def __enter__(self) -> Self:
        self._outer = _current.iteration
        _current.iteration = self
        return self

    def __exit__(self, *exception: object) -> None:
        _current.iteration = self._outer


def check_even(count: int, world: int) -> None:
    """Check that an iteration has the same number of micro-batches for each process.

    Raises:
        ValueError: it has not, so that some would wait for the others' collectives for ever.
    """
    if count % world:
        raise ValueError(
            f"this iteration has {count} micro-batches for {world} processes, but with sharded params each process "
            "must have the same number of them, at least one: set RunConfig.micro_batches to a multiple of the number "
            "of processes; with unit='epoch' the batches of an epoch must be a multiple of micro_batches"
        )


class Derivation:
    """Takes the derivatives of one loss by params of which some are sharded; a context manager around its call.

    The backward pass of a gathering is a collective. Each process runs those of all gatherings, whatever its loss made
    use of: every one has an output that is always differentiated, with a derivative of zero. Autograd runs the nodes
    that are ready latest first, and a gathering waits for nothing but later nodes; so on each process they run in
    the opposite order of the calls.
    """

    __slots__ = ("_anchors", "_gathered", "_outer", "weight")

    def __init__(self) -> None:
        self.weight: Scalar | torch.Tensor = 1
        self._anchors: list[torch.Tensor] = []
        self._gathered: set[int] = set()

    def __enter__(self) -> Self:
        self._outer = _current.derivation
        _current.derivation = self
        return self

    def __exit__(self, *exception: object) -> None:
        _current.derivation = self._outer

    def record(self, leaves: Sequence[Any], anchor: torch.Tensor) -> None:
        """Remember a gathering of ``leaves`` that has the output ``anchor``."""
        self._gathered.update(map(id, leaves))
        if anchor.requires_grad:
            self._anchors.append(anchor)

    def derivatives(self, loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The gradient of ``loss`` by each of ``leaves``; by gathered ones times ``weight`` and summed over ranks.

        ``None`` for leaves that were not gathered and that this process's loss does not depend on.
        """
        outputs = [*([loss] if loss.requires_grad else []), *self._anchors]
        if not outputs:
            return [None] * len(leaves)
        starts = [torch.ones_like(output) if output is loss else torch.zeros_like(output) for output in outputs]
        return list(torch.autograd.grad(outputs, leaves, starts, allow_unused=True))

    def was_gathered(self, leaf: Any) -> bool:
        """Whether a leaf, or one like it that stands in its place, was gathered."""
        return id(leaf) in self._gathered


def current_derivation(mesh: Any) -> Derivation | None:
    """The derivation that a gathering over ``mesh`` is part of.

    Raises:
        ValueError: the processes have different numbers of micro-batches.
        TypeError: the gathering is part of an iteration, but of no derivation.
    """
    iteration, derivation = _current.iteration, _current.derivation
    if iteration is not None:
        world = torch.distributed.get_world_size()
        if mesh.size() != world:
            raise ValueError(
                f"the mesh of the sharded params has {mesh.size()} of the job's {world} processes: use all"
            )
        check_even(iteration.count, world)
        if derivation is None:
            raise TypeError(
                "sharded params were gathered in a gradient function that does not know the weight of its micro-batch: "
                "make it by hf.value_and_grad(loss_fn, has_aux=True)"
            )
    return derivation


def weighted_index() -> int | None:
    """The index of the micro-batch, if it is part of a weighted mean. Notes that it has gradients by sharded params."""
    iteration = _current.iteration
    if iteration is None:
        return None
    iteration.sharded = True
    return iteration.index if iteration.weighted else None
