"""What the driver does with batches: hand them to the step in the right form, move them, describe them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from .. import tree
from ..data import Phases, as_source
from ..types import Delivery, MicroBatches, ReductionName, Source

_MOST_SHOWN = 8


def one_source(loader: Any) -> Source:
    """The source behind a loader that is not a curriculum.

    Raises:
        TypeError: it is one, or nothing that batches can be read from.
    """
    source = as_source(loader)
    if isinstance(source, Phases):
        raise TypeError("phases follow the training state: evaluate on one of their sources, or on a Loader of its own")
    return source


def step_input(delivery: Delivery, micro_batches: int, reduction: ReductionName, device: Any) -> Any:
    """What the step receives: the batch itself when iterations have one micro-batch, else `MicroBatches`.

    The configured number decides, not the number that happens to be left, so a step sees one kind.
    """
    items = delivery.items
    if device is not None:
        items = tuple(to_device(item, device) for item in items)
    if micro_batches == 1:
        return items[0]
    return MicroBatches(items, delivery.start, delivery.count, reduction)


def to_device(batch: Any, device: Any) -> Any:
    """The batch with its tensors on ``device``; ``None`` leaves it as it is."""
    if device is None:
        return batch
    return tree.map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf, batch)


def describe_batch(batch: Any) -> str:
    """Paths, dtypes and shapes of a batch in one line; what is no tensor is only counted."""
    if batch is None:
        return "(not fetched yet)"
    if isinstance(batch, MicroBatches):
        return f"{len(batch.items)} micro-batches of {describe_batch(batch.items[0]) if batch.items else 'nothing'}"
    tensors = [(path, leaf) for path, leaf in tree.items(batch) if isinstance(leaf, torch.Tensor)]
    parts = [f"{path} {tree.describe(leaf)}".strip() for path, leaf in tensors[:_MOST_SHOWN]]
    if len(tensors) > _MOST_SHOWN:
        parts.append(f"{len(tensors) - _MOST_SHOWN} more tensors")
    others = Counter(type(leaf).__name__ for leaf in tree.leaves(batch) if not isinstance(leaf, torch.Tensor))
    parts += [f"{count} {name}" for name, count in sorted(others.items())]
    return ", ".join(parts) or "(empty)"
