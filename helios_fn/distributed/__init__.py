"""Several processes that train as one: the same bits whatever their number."""

from .world import World as World
from .world import connect as connect
from .world import current as current
from .world import opened as opened
