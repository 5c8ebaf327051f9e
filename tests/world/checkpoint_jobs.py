"""What the processes of the tests of sharded checkpoints do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import helios_fn as hf
from helios_fn.checkpoint import OS, FileSystem, ShardedStore

from .jobs import RULES, Training, advance, full, mesh, plain, start

FREE = ("metrics", "validation.metrics")


def facts(iteration: int) -> dict[str, Any]:
    return {"epoch": 0, "iteration": iteration, "micro_step": iteration, "record": {"by": "a test"}, "free": FREE}


def store_at(root: str, files: FileSystem = OS) -> ShardedStore:
    return ShardedStore(Path(root), "run", files=files)


def save(root: str, training: Training, iterations: int, rule: str = "rows"):
    """Train and save; returns the folder, and the state in whole tensors."""
    state, step = start(training, sharded=True, rule=RULES[rule])
    state = advance(state, step, training, range(iterations), sharded=True)
    return store_at(root).save(state, **facts(iterations)), full(plain(state))


def resume(root: str, training: Training, iterations: range, rule: str = "rows"):
    """Load the newest checkpoint, and go on for some iterations."""
    state, step = start(training, sharded=True, rule=RULES[rule])
    store = store_at(root)
    state = store.load(store.newest(), state, free=FREE)
    return full(plain(advance(state, step, training, iterations, sharded=True)))


def save_tree(root: str, tree: Any, dims: dict[str, int | None], iteration: int = 0, files: FileSystem = OS):
    """Save a tree of which some leaves are cut along the ``dims`` at their paths."""
    store = store_at(root, files)
    return store.save(_cut(tree, dims), **facts(iteration))


def load_tree(root: str, like: Any, dims: dict[str, int | None]):
    """The newest checkpoint as a tree that is cut so, in whole tensors."""
    store = store_at(root)
    return full(store.load(store.newest(), _cut(like, dims), free=FREE))


def _cut(tree: Any, dims: dict[str, int | None]) -> Any:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    here, where = dict(hf.tree.items(tree)), mesh()
    for path, dim in dims.items():
        placement = Replicate() if dim is None else Shard(dim)
        here[path] = distribute_tensor(here[path], where, [placement], src_data_rank=None)
    return hf.tree.unflatten(hf.tree.structure(tree), here.values())


class Broken(FileSystem):
    """A file system whose writes to files of one name do ``what``."""

    def __init__(self, name: str, what: Any) -> None:
        self.name, self.what = name, what

    def create(self, path: Path) -> int:
        if self.name in path.name:
            self.what()
        return super().create(path)


def _no_space() -> None:
    raise OSError(28, "No space left on device", "a file")


def fail_to_save(root: str, tree: Any, dims: dict[str, int | None], rank: int, name: str, die: bool = False):
    """A save in which one rank finds the disk full, or dies, when it begins the file ``name``."""
    mine = torch.distributed.get_rank() == rank
    files = Broken(name, (lambda: os._exit(1)) if die else _no_space) if mine else OS
    try:
        save_tree(root, tree, dims, 9, files)
    except (hf.CheckpointError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def save_while_it_changes(root: str, tree: Any, dims: dict[str, int | None]):
    """A save of a state to whose shard rank 1 writes in between."""
    store, state = store_at(root), _cut(tree, dims)
    pending = store.prepare(state, **facts(9))
    if torch.distributed.get_rank() == 1:
        next(leaf for leaf in hf.tree.leaves(state) if hasattr(leaf, "to_local")).to_local().add_(1)
    try:
        store.commit(pending)
    except hf.PurityError as error:
        return str(error)
    return "saved"


def newest(root: str):
    """What each process takes for the newest checkpoint, or what it says instead."""
    try:
        found = store_at(root).newest()
    except hf.CheckpointError as error:
        return str(error)
    return found and found.iteration


def prepare(root: str, tree: Any):
    """The message of a state that cannot be saved."""
    from torch.distributed.tensor import DTensor, Partial

    tree = {name: DTensor.from_local(leaf, mesh(), [Partial()]) for name, leaf in tree.items()} if tree else {"a": 1}
    try:
        store_at(root).prepare(tree, **{**facts(0), "free": ()})
    except (TypeError, ValueError) as error:
        return str(error)
    return "prepared"
