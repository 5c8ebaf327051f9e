"""The configuration: what a run does, and when, as frozen values that are checked once."""

from .cadence import Cadence as Cadence
from .cadence import Every as Every
from .cadence import Total as Total
from .retention import Retention as Retention
from .run import NAME_PATTERN as NAME_PATTERN
from .run import NonFinite as NonFinite
from .run import RunConfig as RunConfig
from .stopping import EarlyStop as EarlyStop
