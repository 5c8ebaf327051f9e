"""Data: batches as a pure function of (key, position), from datasets and streams."""

from .adopt import as_source as as_source
from .adopt import from_dataloader as from_dataloader
from .loader import Loader as Loader
from .members import Members as Members
from .order import CustomBatches as CustomBatches
from .order import CustomOrder as CustomOrder
from .order import Order as Order
from .order import Sequential as Sequential
from .order import Shuffled as Shuffled
from .order import window as window
from .phases import Phases as Phases
from .sampling import KeyedDataset as KeyedDataset
from .stream import OpenStream as OpenStream
from .stream import Stream as Stream
