"""A state with sharded leaves as the content of the two files that rank 0 writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..dtensors import is_sharded
from ..types import Tree
from . import canonical, header, storages, structure
from .leaves import DTYPE_NAMES, Leaf, Scalar, ShardedSpec
from .shards import ShardFile, shard_files_to_json
from .snapshot import MAX_STATE_SIZE, Snapshot, entry_of_range, layout_of


def sharded_snapshot(state: Tree, files: Sequence[ShardFile], specs: Mapping[str, ShardedSpec]) -> Snapshot:
    """Describe a state whose sharded leaves lie in shard ``files`` as their ``specs`` say, by path.

    The other leaves are stored as those of any state.

    Raises:
        ValueError: there are more leaves than a checkpoint can describe.
    """
    paths, tensors = list[str](), list[torch.Tensor]()

    def collect(path: str, leaf: Any) -> Leaf:
        if isinstance(leaf, torch.Tensor) and not is_sharded(leaf):
            paths.append(path)
            tensors.append(leaf)
        return Scalar("bool", False)  # any will do

    structure.outline(state, collect)
    ranges, found = storages.group(tensors)
    rest = iter(found)

    def describe(path: str, leaf: Any) -> Leaf:
        if is_sharded(leaf):
            # Without elements there is nothing to be planned, or stored.
            return specs.get(path) or ShardedSpec(DTYPE_NAMES[leaf.dtype], tuple(leaf.shape), ())
        return next(rest) if isinstance(leaf, torch.Tensor) else Scalar(type(leaf).__name__, leaf)

    node = structure.outline(state, describe)
    entries = [entry_of_range(each, paths) for each in ranges]
    description: dict[str, Any] = {"entries": list(map(list, entries)), "structure": structure.to_json(node)}
    if files:
        description["shards"] = shard_files_to_json(files)
    document = canonical.dump(description)
    if len(document) > MAX_STATE_SIZE:
        raise ValueError(f"the state's structure takes {len(document)} bytes; at most {MAX_STATE_SIZE} are possible")
    return Snapshot(document, header.encode(entries), tuple(tensors), layout_of(ranges))
