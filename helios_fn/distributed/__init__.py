"""Several processes: sharded states."""

from .sharded import gathered as gathered
from .sharded import shard as shard
