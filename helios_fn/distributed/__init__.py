"""Several processes that train as one: the same bits whatever their number.

A script runs unchanged alone, under `launch` and under torchrun: all of them read torchrun's environment variables,
which `launch` sets for the processes that it starts. `helios_fn.run` connects the processes by itself; a loop of
one's own calls `connect` first. The functions over trees are the identity where a process is alone.
"""

from typing import TYPE_CHECKING

from .collectives import all_gather as all_gather
from .collectives import all_reduce as all_reduce
from .collectives import barrier as barrier
from .collectives import broadcast as broadcast
from .devices import choose_devices as choose_devices
from .launch import launch as launch
from .world import World as World
from .world import connect as connect
from .world import current as current
from .world import opened as opened

# Imported when it is first used.
if TYPE_CHECKING:
    from .once import once_per_node as once_per_node
    from .sharded import gathered as gathered
    from .sharded import shard as shard
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "once": "once_per_node",
            "sharded": "gathered shard",
        },
    )
