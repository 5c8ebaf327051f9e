"""Checkpoints: exact, atomic, durable and verified folders, without pickle."""

from .files import OS as OS
from .files import FileSystem as FileSystem
from .listing import Checkpoint as Checkpoint
from .listing import Damaged as Damaged
from .lock import Lock as Lock
from .manifest import Manifest as Manifest
from .saveable import check_saveable as check_saveable
from .store import Store as Store
from .store import verify as verify
from .writer import Prepared as Prepared
from .writer import Save as Save
from .writer import Writer as Writer
