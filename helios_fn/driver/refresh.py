"""Batch statistics for weights that were not trained themselves, such as averaged ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from .. import random
from ..nn import Functional
from ..nn.statistics import measuring
from ..state import DEFAULT_SEED
from ..types import Cursor, Share, Tree
from .batches import one_source, to_device

Forward: TypeAlias = Callable[[Functional, Any, Any, Any], tuple[Any, Any]]


def _of_inputs(model: Functional, params: Tree, buffers: Tree, batch: Any) -> tuple[Any, Any]:
    return model(params, buffers, batch[0] if isinstance(batch, tuple | list) else batch)


def refresh_batch_norm(
    model: Functional,
    params: Tree,
    buffers: Tree,
    loader: Any,
    *,
    forward: Forward = _of_inputs,
    seed: int = DEFAULT_SEED,
    device: Any = None,
) -> Tree:
    """New buffers in which the running statistics of batch norms are those of ``params``.

        buffers = refresh_batch_norm(model, state.averages, state.buffers, loader)
        model.eval(state.averages, buffers, x)

        def validate(state):  # of a run, with a Validator
            buffers = refresh_batch_norm(model, state.averages, state.buffers, loader.replace())
            return validator(state.replace(params=state.averages, buffers=buffers))

    The statistics begin anew, and are the plain means of those of all batches of one epoch, a shorter last one
    included; these are the bits of ``torch.optim.swa_utils.update_bn`` on the same batches. Batch norms in eval mode
    or without statistics stay as they are, as does every argument; where there are no others, ``buffers`` is returned
    and nothing is read. Several processes each read all batches, and get the same bits.

    Args:
        model: from `functional`.
        params: the weights, such as ``state.averages``.
        buffers: those that belong to ``model``.
        loader: the training data; anything that `run` accepts with an end. ``loader.take(n)`` reads less. A loader has
            one reader at a time: during a run hand over ``loader.replace()``.
        forward: ``forward(model, params, buffers, batch) -> (output, buffers)``; by default the model is called with
            the first element of a batch that is a tuple or list, and else with the batch.
        seed: of draws (dropout, augmentation, order).
        device: where batches are moved first.

    Raises:
        TypeError: ``model`` does not come from `functional`.
        ValueError: ``loader`` has no end.
    """
    if not isinstance(model, Functional):
        raise TypeError(f"the model must be what functional() returned, got {type(model).__name__}")
    source = one_source(loader)
    batches = source.batches_per_epoch
    if batches is None:
        raise ValueError("a stream has no end to measure up to: hand over a Loader, or limit the stream yourself")
    found = measuring(model, buffers)
    if found is None:
        return buffers
    measured, new = found
    key = random.fold_in(random.key(seed), "refresh_batch_norm")
    feed = source.open(Cursor(), key=key, share=Share("epoch", 1))
    try:
        with torch.no_grad():
            for number, delivery in zip(range(batches), feed, strict=False):
                batch = to_device(delivery.items[0], device)
                with random.scope(random.fold_in(key, number)):
                    _, new = forward(measured, params, new, batch)
    finally:
        feed.close()
        source.close()
    return new
