"""A state on its way to another process: described and packed as in a checkpoint, without a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch

from ..types import Tree
from . import canonical, storages
from .format import rebuilt, stored_from_json
from .snapshot import snapshot


def packed(state: Tree) -> tuple[bytes, Iterator[torch.Tensor]]:
    """A description of ``state``, and the bytes of its tensors, uint8 vectors on the CPU, one at a time."""
    content = snapshot(state)
    return content.state, (torch.frombuffer(storages.content(found), dtype=torch.uint8) for found in content.ranges())


def unpacked(
    description: bytes, like: Tree, fill: Callable[[torch.Tensor], None], *, free: Collection[str] = ()
) -> Tree:
    """The state that was `packed` elsewhere, in the containers and on the devices of ``like``.

    Args:
        description: the first part of what `packed` returned.
        like: a state of the same structure, but for the subtrees at the ``free`` paths.
        fill: fills a uint8 vector with the next part.
        free: as in `Store.load`.

    Raises:
        ResumeRefused, ValueError: the structures differ.
    """
    stored = stored_from_json(canonical.parse(description))
    memory = [storages.allocate(entry.size) for entry in stored.entries]
    for data in memory:
        fill(data)
    return rebuilt(stored.structure, like, memory, free=free)
