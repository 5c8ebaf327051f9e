"""Checkpoints: exact, atomic, durable and verified folders, without pickle."""

from .contents import Contents as Contents
from .contents import open_contents as open_contents
from .files import OS as OS
from .files import FileSystem as FileSystem
from .listing import Checkpoint as Checkpoint
from .listing import Damaged as Damaged
from .lock import Lock as Lock
from .manifest import Manifest as Manifest
from .partial import Report as Report
from .partial import Restored as Restored
from .partial import restore as restore
from .pending import Pending as Pending
from .retention import entry_of as entry_of
from .retention import ranked as ranked
from .saveable import check_saveable as check_saveable
from .sharded_store import PendingShards as PendingShards
from .sharded_store import ShardedStore as ShardedStore
from .store import Store as Store
from .store import verify as verify
from .weights import export as export
from .writer import Prepared as Prepared
from .writer import Save as Save
from .writer import Writer as Writer
