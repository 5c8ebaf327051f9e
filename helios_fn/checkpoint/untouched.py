"""What makes it safe to read a tree in another thread: it is complete, and nobody writes to it meanwhile."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import tree as trees
from ..errors import StateOverwritten
from ..types import Tree


class Untouched:
    """Remembers the version counters of a tree's tensors as they are now.

    The counters are torch's own: they move with each in-place operation on a tensor or a view of it, but not with
    writes through ``.data``, NumPy or another process. Tensors made in inference mode have none.

    Args:
        tree: what is being saved; it is kept until this object goes.
        folder: where to, for the message.
    """

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._tree = tree
        self._folder = folder
        self._versions = _versions(tree)

    def check(self) -> None:
        """Check that no counter has moved.

        Raises:
            StateOverwritten: naming the leaves that were written to.
        """
        found = _versions(self._tree)
        if found == self._versions:
            return
        paths = [path for path, leaf in trees.items(self._tree) if _has_version(leaf)]
        written = [path for path, old, new in zip(paths, self._versions, found, strict=True) if old != new]
        more = f" and {len(written) - 3} more" if len(written) > 3 else ""
        raise StateOverwritten(
            f"cannot save {self._folder}: {', '.join(written[:3])}{more} was written to while it was being saved. "
            "A state never changes: write to a .clone(), and let observers and validation only read"
        )


def wait_for_devices(tree: Tree) -> None:
    """Wait until the tensors of a tree have their values, so that another thread, with a stream of its own, reads them.

    Nothing is copied: that thread transfers them while training goes on.
    """
    for device in {leaf.device for leaf in trees.leaves(tree) if isinstance(leaf, torch.Tensor) and not leaf.is_cpu}:
        torch.accelerator.synchronize(device)


def _versions(tree: Tree) -> list[int]:
    return [leaf._version for leaf in trees.leaves(tree) if _has_version(leaf)]


def _has_version(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_inference()
