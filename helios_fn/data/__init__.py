"""Data: batches as a pure function of (key, position), from datasets and streams."""

from typing import TYPE_CHECKING

from .adopt import as_source as as_source
from .adopt import from_dataloader as from_dataloader
from .loader import Loader as Loader
from .order import CustomBatches as CustomBatches
from .order import CustomOrder as CustomOrder
from .order import Order as Order
from .order import Sequential as Sequential
from .order import Shuffled as Shuffled
from .order import window as window
from .phases import Phases as Phases
from .sampling import KeyedDataset as KeyedDataset

# Imported when it is first used.
if TYPE_CHECKING:
    from .members import Members as Members
    from .stream import OpenStream as OpenStream
    from .stream import Stream as Stream
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "members": "Members",
            "stream": "OpenStream Stream",
        },
    )
