"""The checkpoints of a run whose state is sharded: every process writes its pieces, rank 0 all else."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import tree as trees
from ..dtensors import any_sharded, is_sharded, local
from ..errors import CheckpointError
from ..types import Tree
from . import canonical, header, structure
from . import storages as memory
from .files import disk_errors, remove_folder
from .leaves import Leaf, Scalar
from .listing import Checkpoint
from .manifest import Manifest
from .names import UNFINISHED
from .saveable import check_saveable
from .shards import shard_files_to_json
from .snapshot import Snapshot, entry_of_range
from .store import Store
from .untouched import Untouched, wait_for_devices


class PendingShards(NamedTuple):
    """A sharded checkpoint that has been checked and is yet to be written; it keeps the state's tensors alive."""

    folder: Path
    description: Manifest
    state: Tree
    untouched: Untouched
