"""What makes it safe to read a tree in another thread: it is complete, and nobody writes to it meanwhile."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import tree as trees
from ..errors import StateOverwritten
from ..types import Tree


class Untouched:
    """Holds on to a tree's leaves, and remembers the version counters of its tensors as they are now.

    The counters are torch's own: they move with each in-place operation on a tensor or a view of it, but not with
    writes through ``.data``, NumPy or another process. Tensors made in inference mode have none.

    Where tensors are on other devices, this waits until they have their values, so that another thread, with a stream
    of its own, reads them. Nothing is copied: that thread transfers them while training goes on.

    Args:
        tree: what is being saved. Its leaves are kept until this object goes; its containers may change.
        folder: where to, for the message.
    """

    def __init__(self, tree: Tree, folder: Path) -> None:
        self._leaves, self._treespec = trees.flatten(tree)
        self._folder = folder
        self._versions = _versions(self._leaves)
        tensors = (leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor))
        for device in {tensor.device for tensor in tensors if not tensor.is_cpu}:
            torch.accelerator.synchronize(device)

    def tree(self) -> Tree:
        """The tree as it was, of its leaves and other containers."""
        return trees.unflatten(self._treespec, self._leaves)

    def check(self) -> None:
        """Check that no counter has moved.

        Raises:
            StateOverwritten: naming the leaves that were written to.
        """
        found = _versions(self._leaves)
        if found == self._versions:
            return
        pairs = zip(self._versions, found, strict=True)
        paths = trees.paths(self.tree())
        written = [path for path, (old, new) in zip(paths, pairs, strict=True) if old != new]
        more = f" and {len(written) - 3} more" if len(written) > 3 else ""
        raise StateOverwritten(
            f"cannot save {self._folder}: {', '.join(written[:3])}{more} was written to while it was being saved. "
            "A state never changes: write to a .clone(), and let observers and validation only read"
        )


def _versions(leaves: list[object]) -> list[int | None]:
    """The counter of each leaf that has one."""
    return [leaf._version if isinstance(leaf, torch.Tensor) and not leaf.is_inference() else None for leaf in leaves]
