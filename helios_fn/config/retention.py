"""Which checkpoints stay."""

from __future__ import annotations

import dataclasses
from typing import Literal

from .checks import check_choice, check_count


@dataclasses.dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints of a run stay on the disk; the others are removed after each save.

    A checkpoint stays if any of the rules keeps it. Whatever they say, the two newest valid ones stay,
    damaged ones are left alone, and nothing is removed before a newer one is durable; nor is anything
    in ``superseded`` and ``damaged``. The decision depends on what is on the disk alone, so it is the
    same after a restart; a later decision never wants back what an earlier one gave up.

    Attributes:
        last: keep this many of the newest; 1 means the same as 2, and ``None`` adds nothing to these two.
        best: keep this many validation cycles with the best ``monitor``, by the first checkpoint of
            each (later ones repeat its metrics). NaN is never best; of equal values the earlier is.
        monitor: the name of the metric that ``validate`` returns. ``resume="best"`` goes by it, too.
        mode: whether smaller (``"min"``) or larger (``"max"``) is better.
        every: keep for ever the first checkpoint at or after each multiple of this many iterations,
            iteration 0 included.

    What others call it: ``last`` is Orbax' ``max_to_keep``, ``keep_latest_k`` of torchtitan and
    ``save_total_limit`` of transformers; ``best`` with ``monitor`` and ``mode`` is Lightning's
    ``save_top_k`` (its ``save_last`` is always on); ``every`` is Orbax' ``keep_period``. How often a
    checkpoint is written at all is ``RunConfig.checkpoint_every``.
    """

    last: int | None = None
    best: int = 0
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    every: int | None = None

    def __post_init__(self) -> None:
        check_choice("Retention.mode", self.mode, Literal["min", "max"])
        if type(self.best) is not int or self.best < 0:
            raise ValueError(f"Retention.best must be an integer of at least 0, got {self.best!r}")
        for field in ("last", "every"):
            if getattr(self, field) is not None:
                check_count(f"Retention.{field}", getattr(self, field), " or None")
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise TypeError(f"Retention.monitor must be the name of a metric, got {self.monitor!r}")
        if self.best and self.monitor is None:
            raise ValueError(f"Retention.best={self.best} must know which metric is best: set monitor (and mode)")
        if self.last is None and not self.best and self.every is None:
            raise ValueError("Retention has no rule: set last, best or every, or retention=None to keep everything")
