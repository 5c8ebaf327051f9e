"""helios_fn with checkpoints for which training waits (README, "Checkpoints"), as it does in all the other loops here.

So its resumes start from the same checkpoints as theirs; by default the newest may not be on disk yet.
"""

from __future__ import annotations

from .. import job
from ..leg import Leg
from . import helios_fn

TITLE = "helios_fn, async_save=False"
RESUME = "the same line again; training waits for each checkpoint"


def prepare() -> str:
    """Imports it."""
    return helios_fn.prepare()


def train(leg: Leg) -> job.Final:
    """The same."""
    return helios_fn.train(leg, async_save=False)
