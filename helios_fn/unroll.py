"""Training as a differentiable function of the state it starts from.

Without rematerialisation every intermediate result of every step is kept until the backward pass. With it, the
steps are cut into segments: the forward pass keeps the state at the start of each and nothing else, and the
backward pass computes one segment again at a time. For T steps in segments of k that is the memory of T / k states
and of the graphs of k steps, at the price of one more forward pass. See
[Griewank](https://doi.org/10.1080/10556789208805505) and [Chen et al.](https://arxiv.org/abs/1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch

from . import schedule, tree
from .state import TrainState
from .tracing import is_traced
from .types import MicroBatches, Step

Remat: TypeAlias = int | Literal["sqrt"] | None
Tensors: TypeAlias = tuple[torch.Tensor, ...]


def unroll(step: Step, state: TrainState, batches: Iterable[Any], *, remat: Remat = None) -> TrainState:
    """The state after one ``step`` for each of ``batches``, differentiable with respect to the state's tensors.

    Gradients flow to every floating tensor of ``state`` and of ``batches`` that requires them: params (MAML),
    hyperparameters in ``opt_state`` (hypergradients), whatever a step reads from ``extra``. Both
    ``torch.autograd`` and ``torch.func`` transforms around the call differentiate it, in reverse mode, to any order.
    Keep what is learned in the state: a tensor that ``step`` closes over is no input of it.

    Counters advance as in `run`, so each step has keys of its own; the cursor stays, since nothing is known of the
    data that the batches came from. ``step`` is called, never ``step.donating``. Optimisers take their
    differentiable path, which equals the usual one to rounding.

    Args:
        step: pure ``step(state, batch) -> state``, as for `run`.
        state: where training starts.
        batches: one for each step.
        remat: how many steps are computed again at a time in the backward pass; ``"sqrt"`` takes the square
            root of their number, so that memory grows as it does. Where a state is much smaller than the graph of
            a step, a smaller number needs less. ``None`` keeps all and computes nothing twice. The bits of
            values and gradients do not depend on it. In a compiled region there is nothing it could do: leave
            it out there, or compile the step alone, ``unroll(hf.compile(step), ...)``.

    Raises:
        ValueError: ``remat`` is less than 1 or an unknown word, or given in a compiled region; or the step closes
            over a tensor that requires grad, which would be forgotten.
        TypeError: the step returned something else than a `TrainState`; or ``remat`` is of another kind.

    Example:
        >>> def step(state, batch):
        ...     return state.replace(params={"w": state.params["w"] * batch})
        ...
        >>> def final(w):
        ...     return hf.unroll(step, hf.init_state({"w": w}), [2.0, 3.0]).params["w"]
        ...
        >>> torch.func.grad(final)(torch.tensor(1.0))
        tensor(6.)
    """
    items = list(batches)
    length = _segment_length(remat, len(items))
    if length is None or not _is_differentiated(state, items):
        return _trained(step, state, items)
    if torch.compiler.is_compiling():
        raise ValueError("remat has no effect on memory in a compiled region: leave it out, or compile the step alone")
    for start in range(0, len(items), length):
        state = _rematerialised(step, state, items[start : start + length])
    return state


def _segment_length(remat: Remat, steps: int) -> int | None:
    if remat is None:
        return None
    if isinstance(remat, str):
        if remat != "sqrt":
            raise ValueError(f"remat must be a number of steps, 'sqrt' or None, got {remat!r}")
        return max(1, math.isqrt(steps))
    if isinstance(remat, bool) or not isinstance(remat, int):
        raise TypeError(f"remat must be a number of steps, 'sqrt' or None, got {remat!r}")
    if remat < 1:
        raise ValueError(f"remat must be at least 1 step, got {remat}")
    return remat


def _trained(step: Step, state: TrainState, items: Sequence[Any]) -> TrainState:
    for item in items:
        state = _one_step(step, state, item)
    return state


def _one_step(step: Step, state: TrainState, batch: Any) -> TrainState:
    new = step(state.replace(metrics={}), batch)
    if not isinstance(new, TrainState):
        raise TypeError(f"the step must return a TrainState, got {tree.describe(new)}")
    count = batch.count if isinstance(batch, MicroBatches) else 1
    return new.replace(counters=schedule.advance(state.counters, count))


def _is_differentiated(state: TrainState, items: Sequence[Any]) -> bool:
    return is_traced() or (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in tree.tensors((state, items))))


def _rematerialised(step: Step, state: TrainState, items: Sequence[Any]) -> TrainState:
    """`_trained` as one node of the graph."""
    tensors = tree.tensors((state, items))
    segment = _Segment(step, (state, items), tensors)
    return segment.end(_Forward.apply(segment, *tensors))


class _Segment:
    """Some steps as a function of the tensors of the state they start from and of their batches.

    Steps and optimisers choose their path to the result by whether a transform is active or autograd records, and
    the paths differ in the last bits. So a segment is computed just as it would be without rematerialisation:
    within a transform if it was called in one, and recorded by autograd otherwise.

    It holds no tensors of the run itself: those belong to the graph, and are freed with it.
    """

    def __init__(self, step: Step, start: tuple[TrainState, Sequence[Any]], tensors: Sequence[torch.Tensor]) -> None:
        self._step = step
        self._start = _emptied(start)
        self._end: Any = None
        self._transformed = is_traced()
        # Under a transform a tensor may depend on a level that cannot be seen from here.
        self._wanted = [_has_gradient(leaf) if self._transformed else leaf.requires_grad for leaf in tensors]
        self.constant: list[bool] = []

    def end(self, tensors: Sequence[torch.Tensor]) -> TrainState:
        """The state after the last step, made of its tensors."""
        found: TrainState = tree.with_tensors(self._end, tensors)
        return found

    def forward(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """The tensors of the state after the last step."""
        if self._transformed:
            found = self._under_transform(tensors)
            self.constant = [not _has_gradient(leaf) for leaf in found]
        else:
            found = self._recorded(tensors)
            self.constant = [not leaf.requires_grad for leaf in found]
        return tuple(leaf.detach() for leaf in found)

    def pull(self, needed: Sequence[bool], tensors: Sequence[torch.Tensor], grads: Sequence[Any]) -> Tensors:
        """Gradients with respect to the ``needed`` tensors, from those of the last state's tensors."""
        if self._transformed:
            return self.pull_by_transform(needed, tensors, grads)
        with torch.enable_grad():
            leaves = self._leaves(tensors)
            outputs, seeds = _seeded(self._computed(leaves), grads)
            inputs = [leaf for leaf, is_needed in zip(leaves, needed, strict=True) if is_needed]
            found = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
        return tuple(torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True))

    def pull_by_transform(
        self, needed: Sequence[bool], tensors: Sequence[torch.Tensor], grads: Sequence[Any]
    ) -> Tensors:
        """`pull`, to be used under transforms, and differentiable itself."""
        outputs_of, inputs = self._function_of(needed, tensors)
        pullback = torch.func.vjp(lambda *inputs: tuple(_seeded(outputs_of(*inputs), grads)[0]), *inputs)[1]
        return tuple(pullback(tuple(seed for seed in grads if seed is not None)))

    def _function_of(
        self, which: Sequence[bool], tensors: Sequence[torch.Tensor]
    ) -> tuple[Callable[..., Tensors], list[torch.Tensor]]:
        """The segment as a function of some of its tensors, and these."""

        def outputs_of(*inputs: torch.Tensor) -> Tensors:
            return self._computed(_merged(which, inputs, tensors))

        return outputs_of, [leaf for leaf, is_input in zip(tensors, which, strict=True) if is_input]

    def _computed(self, leaves: Sequence[torch.Tensor]) -> Tensors:
        state, items = tree.with_tensors(self._start, leaves)
        state = _trained(self._step, state, items)
        self._end = _emptied(state)
        return tuple(tree.tensors(state))

    def _under_transform(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """`_computed`, where a transform of no further use is active."""
        outputs_of, inputs = self._function_of(self._wanted, tensors)

        def with_aux(*inputs: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
            # Integers may leave a transform as what is not differentiated alone.
            return inputs[0], outputs_of(*inputs)

        *_, found = torch.func.vjp(with_aux, *inputs, has_aux=True)
        return found  # type: ignore[return-value]

    def _recorded(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """`_computed`, where autograd records each step but no graph outlives it."""
        with torch.enable_grad():
            leaves = self._leaves(tensors)
            state, items = tree.with_tensors(self._start, leaves)
            for index, item in enumerate(items):
                state = _one_step(self._step, state, item)
                if index == 0:
                    _check_closure(state, leaves)
                state = tree.map(_cut, state)
        self._end = _emptied(state)
        return tuple(tree.tensors(state))

    def _leaves(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        pairs = zip(tensors, self._wanted, strict=True)
        return [tensor.detach().requires_grad_(is_wanted) for tensor, is_wanted in pairs]


class _Forward(torch.autograd.Function):
    """The steps of a segment. Keeps their inputs only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, *tensors: torch.Tensor) -> Tensors:
        return segment.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        segment, *tensors = inputs
        ctx.segment = segment
        ctx.set_materialize_grads(False)  # adding zeros would turn -0.0 into 0.0
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(
            *[leaf for leaf, is_constant in zip(output, segment.constant, strict=True) if is_constant]
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1:]
        # A node of its own, so that under torch.func, which always records the backward pass, it records only this.
        found = iter(_Backward.apply(ctx.segment, needed, len(needed), *ctx.saved_tensors, *grads))
        return None, *(next(found) if is_needed else None for is_needed in needed)


class _Backward(torch.autograd.Function):
    """The gradient of a segment, computed from its inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, needed: Sequence[bool], count: int, *tensors: Any) -> Tensors:
        # A gradient may be one of those that came in, and autograd wants no input back as it is.
        return tuple(grad.view_as(grad) for grad in segment.pull(needed, tensors[:count], tensors[count:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.segment, ctx.needed, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]

        def pull(*inputs: torch.Tensor) -> Tensors:
            every = _merged(needed, inputs, tensors)
            return ctx.segment.pull_by_transform(ctx.needed, every[: ctx.count], every[ctx.count :])

        pullback = torch.func.vjp(pull, *[leaf for leaf, wanted in zip(tensors, needed, strict=True) if wanted])[1]
        found = iter(pullback(grads))
        return None, None, None, *(next(found) if is_needed else None for is_needed in needed)


def _has_gradient(leaf: torch.Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _cut(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, torch.Tensor) else leaf


def _merged(which: Sequence[bool], some: Iterable[torch.Tensor], every: Sequence[Any]) -> list[Any]:
    """``every`` with ``some`` in the places that ``which`` marks."""
    given = iter(some)
    return [next(given) if is_given else leaf for leaf, is_given in zip(every, which, strict=True)]


def _seeded(outputs: Iterable[torch.Tensor], grads: Sequence[Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Those outputs that have a gradient, and these."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    return [output for output, _ in pairs], [grad for _, grad in pairs]


def _check_closure(state: TrainState, leaves: Sequence[torch.Tensor]) -> None:
    """Refuse a step that reads tensors which require grad from anywhere but its arguments: they would get none."""
    known = {id(leaf) for leaf in leaves}
    nodes = [leaf.grad_fn for leaf in tree.tensors(state) if leaf.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is None or node in seen:
                continue
            # Only the nodes that accumulate the gradient of a leaf know a variable.
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                raise ValueError(
                    f"the step closes over a tensor that requires grad, {tree.describe(leaf)}, and where steps are "
                    "rematerialised it would get no gradient: put it into state.extra, or leave remat out"
                )
            seen.add(node)
            nodes.append(node)


def _emptied(node: Any) -> Any:
    empty = torch.empty(0, device="meta")
    return tree.map(lambda leaf: empty if isinstance(leaf, torch.Tensor) else leaf, node)
