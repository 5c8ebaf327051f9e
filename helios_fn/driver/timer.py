"""What depends on the clock: when a launch has lasted long enough, and when it is time for another checkpoint.

Nothing here reaches a state or a log row: it only decides where a run is cut, and how much a crash may cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..config import RunConfig

Clock = Callable[[], float]
"""Seconds from any beginning, never going back."""


class Timer:
    """The time limit and the checkpoint cadence of one launch, counted from now.

    Args:
        cfg: ``max_time`` and ``checkpoint_every_seconds`` decide; without them the clock is never read.
        clock: replaced in tests.

    Attributes:
        running: whether there is anything to wait for.
    """

    def __init__(self, cfg: RunConfig, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        limit, self._every = cfg.seconds("max_time"), cfg.seconds("checkpoint_every_seconds")
        self.running = min(self._every, limit) < math.inf
        now = clock() if self.running else 0.0
        self._stop_at, self._save_at = now + limit, now + self._every

    def is_over(self) -> bool:
        """Whether the time limit has passed."""
        return self._stop_at < math.inf and self._clock() >= self._stop_at

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return self._save_at < math.inf and self._clock() >= self._save_at

    def saved(self) -> None:
        """Count from now to the next checkpoint."""
        if self._every < math.inf:
            self._save_at = self._clock() + self._every
