"""Checkpoints: exact, atomic, durable and verified folders, without pickle."""

from typing import TYPE_CHECKING

from .files import OS as OS
from .files import FileSystem as FileSystem
from .listing import Checkpoint as Checkpoint
from .listing import Damaged as Damaged
from .lock import Lock as Lock
from .manifest import Manifest as Manifest
from .pending import Pending as Pending
from .retention import entry_of as entry_of
from .retention import ranked as ranked
from .saveable import check_saveable as check_saveable
from .store import Store as Store
from .store import verify as verify
from .writer import Prepared as Prepared
from .writer import Save as Save
from .writer import Writer as Writer

# Imported when it is first used.
if TYPE_CHECKING:
    from .contents import Contents as Contents
    from .contents import open_contents as open_contents
    from .partial import Report as Report
    from .partial import Restored as Restored
    from .partial import restore as restore
    from .sharded_store import PendingShards as PendingShards
    from .sharded_store import ShardedStore as ShardedStore
    from .weights import export as export
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "contents": "Contents open_contents",
            "partial": "Report Restored restore",
            "sharded_store": "PendingShards ShardedStore",
            "weights": "export",
        },
    )
