"""One iteration's micro-batches through the gradient function."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from .. import random
from ..distributed.gradients import Iteration
from ..distributed.reduction import SUMS, Partial, Reduce, Term
from ..distributed.rooms import Loose
from ..distributed.world import World, current
from ..state import micro_keys
from ..tracing import is_traced
from ..types import Aux, Key, MicroBatches, Tree
from .layout import Facts, Layout
from .mean import Mean, mean_of_one
from .report import read_aux, read_metrics, read_weight
from .shards import Shards, check_even_shards

_AS_IT_IS = contextlib.nullcontext()

GradFn: TypeAlias = Callable[[Tree, Tree, Any, Key], tuple[tuple[torch.Tensor, Aux | None], Tree]]


def microsteps(grad_fn: GradFn, state: Any, batch: Any, *, reduce: Reduce | None = None) -> Mean:
    """Call ``grad_fn`` on each micro-batch of this iteration and return the mean over all of them, of all processes.

    This is the only place where processes that train together (`helios_fn.launch`, torchrun) exchange gradients: each
    calls ``grad_fn`` on its own share of the micro-batches, and all get the same mean.

    Every call gets the same ``state.params`` and ``state.buffers``, its micro-batch and its key, and
    runs in a scope of that key.

    A plain batch is one micro-batch, and its results are returned as they are. `MicroBatches` are
    combined, in the order that ``batch.reduction`` names, into

    - ``loss``, ``grads``, ``metrics``: ``sum(w_i * x_i) / sum(w_i)`` with the weights of `Aux`;
    - floating point buffers: the state's plus the weighted mean of the changes, so elements that no
      micro-batch changed keep their bits;
    - other buffers: those of micro-batch 0. A counter thus advances once per iteration.

    Gradients by sharded params are summed over processes one micro-batch of each after another, and then in order; each
    process must have the same number of micro-batches.

    A micro-batch of weight 0 has no part in any mean, even if it is NaN. If the total weight is 0, loss,
    gradients and metrics are zeros and the buffers are those of the state: make no update.

    Args:
        grad_fn: ``grad_fn(params, buffers, batch, key) -> ((loss, aux), grads)``, which is what
            ``value_and_grad(loss_fn, has_aux=True)`` makes; ``aux`` is an `Aux` or ``None``.
        state: has ``params``, ``buffers``, ``key`` and ``counters``, as `TrainState`.
        batch: what the driver hands to a step.
        reduce: the sum over processes; by default over those that train together right now.

    Raises:
        TypeError: ``aux``, a weight, a metric or a changing buffer is of the wrong kind.
        ValueError: a weight is negative or not finite, a metric is not 0-d, micro-batches disagree on
            their metrics or on which buffers they change, or there are none.
        PeerLost: another process is missing.

    Example:
        >>> def loss_fn(params, buffers, batch, key):
        ...     return (params["w"] * batch).mean(), hf.Aux(weight=len(batch))
        ...
        >>> state = hf.init_state({"w": torch.tensor(1.0)})
        >>> batch = hf.MicroBatches((torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0])), start=0, count=2)
        >>> mean = hf.microsteps(hf.value_and_grad(loss_fn, has_aux=True), state, batch)
        >>> mean.loss.item(), mean.grads["w"].item(), mean.weight
        (2.0, 2.0, 4.0)
    """
    return mean_over(grad_fn, state.params, state.buffers, batch, micro_keys(state, batch), reduce=reduce)


def mean_over(
    grad_fn: GradFn,
    params: Tree,
    buffers: Tree,
    batch: Any,
    keys: Sequence[Key],
    *,
    reduce: Reduce | None = None,
) -> Mean:
    """`microsteps` of the parts of a state, with one key for each micro-batch that this process holds."""
    if not isinstance(batch, MicroBatches):
        with _AS_IT_IS if is_traced() else Iteration(1, weighted=False):
            return mean_of_one(_evaluate(grad_fn, params, buffers, batch, keys[0], 0), buffers)
    world = current()
    layout: Layout | None = None
    shards = Shards()
    total = SUMS[batch.reduction](batch.start)
    for index, (item, key) in enumerate(zip(batch.items, keys, strict=True), batch.start):
        with _AS_IT_IS if is_traced() else Iteration(batch.count, index, weighted=True) as iteration:
            result = _evaluate(grad_fn, params, buffers, item, key, index)
        if iteration is not None and iteration.sharded:
            result = shards.taken(result, buffers)
        if layout is None:
            layout, term = _begun(grad_fn, result, index, params, buffers)
        else:
            term = layout.term(result, index)
        total.push(term)
        del result, term  # its gradients would live through the next backward pass
    if not batch.items:
        check_even_shards(params, batch.count)
    if reduce is None and batch.count < world.size:
        layout = _layout_for_all(layout, world, params, buffers)
    if layout is None:
        raise ValueError(f"this process has none of the iteration's {batch.count} micro-batches")
    like = None if batch.items else layout.empty_term(params)
    partial = Partial(total.blocks(), batch.count, batch.reduction, like)
    found = (world.reduce if reduce is None else reduce)(partial)
    mean = layout.mean(found)
    if reduce is None:  # elsewhere somebody may still hold the sums
        layout.give_back([found, *(block.term for block in partial.blocks)])
    return shards.put_back(mean)


# What was found out about the results of a gradient function. It decides the cost of a call, and no bit of its result.
_layouts: weakref.WeakKeyDictionary[Any, Layout] = weakref.WeakKeyDictionary()


def _begun(grad_fn: GradFn, first: Mean, index: int, params: Tree, buffers: Tree) -> tuple[Layout, Term | Loose]:
    """The layout of an iteration, and the term of its first result."""
    known = None
    if not is_traced():
        with contextlib.suppress(TypeError):  # some callables cannot be hashed, or not be held weakly
            known = _layouts.get(grad_fn)
    found = None if known is None else known.again(first, index, params, buffers)
    if found is not None:
        return found
    layout = Layout.of(first, index, params, buffers)
    term = layout.term(first, index)
    kept = layout.kept()
    if kept is not None:
        with contextlib.suppress(TypeError):
            _layouts[grad_fn] = kept
    return layout, term


def _layout_for_all(layout: Layout | None, world: World, params: Tree, buffers: Tree) -> Layout:
    """The layout on every process of an iteration in which some have no micro-batch. The last one always has."""
    if is_traced():
        raise ValueError(
            "an iteration has fewer micro-batches than there are processes, which a step that is compiled as a whole "
            "cannot express: use unit='iteration', fewer processes, or compile='grad'"
        )
    facts = world.tell_all(None if layout is None else layout.facts.to_json(), world.size - 1)
    return Layout(Facts.from_json(facts), params, params, buffers) if layout is None else layout


def _evaluate(grad_fn: GradFn, params: Tree, buffers: Tree, item: Any, key: Key, index: int) -> Mean:
    """The results of one micro-batch, checked and detached."""
    # A key without a value cannot be scoped; whoever compiles has opened a scope around the region.
    if random.is_traced(key):
        (loss, returned), grads = grad_fn(params, buffers, item, key)
    else:
        (loss, returned), grads = random.within(key, grad_fn, params, buffers, item, key)
    aux = read_aux(returned)
    new = buffers if aux.buffers is None else aux.buffers
    # Under a transform an outer level may still differentiate.
    if loss.requires_grad and not is_traced():
        loss = loss.detach()
    return Mean(loss, grads, new, read_metrics(aux.metrics), read_weight(aux.weight, index))
