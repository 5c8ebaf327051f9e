"""The configuration of a run: frozen, validated once, and plain enough to be stored in a checkpoint."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from .types import Json, ReductionName, UnitName

NonFinite: TypeAlias = Literal["raise", "skip", "stop", "rollback"]
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """A cadence: every ``n`` iterations or epochs, whatever the unit of the run.

    Example:
        >>> hf.RunConfig(unit="epoch", total=3, log_every=hf.Every(10, "iteration")).cadence("log_every")
        Every(n=10, unit='iteration')
    """

    n: int
    unit: UnitName

    def __post_init__(self) -> None:
        _check_count("Every.n", self.n)
        _check_choice("Every.unit", self.unit, UnitName)


Cadence: TypeAlias = int | Every | None
"""How often something happens: a number of the run's units, an `Every`, or ``None`` for never."""


@dataclasses.dataclass(frozen=True, slots=True)
class EarlyStop:
    """Stop when a validation metric has not improved for ``cycles`` validation cycles in a row.

    Attributes:
        monitor: the name of the metric that ``validate`` returns.
        cycles: how many cycles without improvement end the run.
        mode: whether smaller (``"min"``) or larger (``"max"``) is better.
        min_delta: how much better counts as an improvement; not negative.
        improved: ``improved(best, new) -> bool`` replaces the comparison; ``mode`` still decides the
            first ``best`` (plus or minus infinity).
    """

    monitor: str
    cycles: int
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    improved: Callable[[float, float], bool] | None = None

    def __post_init__(self) -> None:
        _check_count("EarlyStop.cycles", self.cycles)
        _check_choice("EarlyStop.mode", self.mode, Literal["min", "max"])
        if not isinstance(self.monitor, str):
            raise TypeError(f"EarlyStop.monitor must be the name of a metric, got {self.monitor!r}")
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"EarlyStop.min_delta must be finite and not negative, got {self.min_delta!r}")
        if self.improved is not None and not callable(self.improved):
            raise TypeError(f"EarlyStop.improved must be a function of best and new, got {self.improved!r}")

    @property
    def worst(self) -> float:
        """The value that anything improves on."""
        return math.inf if self.mode == "min" else -math.inf

    def is_improvement(self, best: float, new: float) -> bool:
        """Whether ``new`` is better than ``best``. NaN never is."""
        if self.improved is not None:
            return bool(self.improved(best, new))
        return new < best - self.min_delta if self.mode == "min" else new > best + self.min_delta


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
        _check_choice("Retention.mode", self.mode, Literal["min", "max"])
        if type(self.best) is not int or self.best < 0:
            raise ValueError(f"Retention.best must be an integer of at least 0, got {self.best!r}")
        for field in ("last", "every"):
            if getattr(self, field) is not None:
                _check_count(f"Retention.{field}", getattr(self, field), " or None")
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise TypeError(f"Retention.monitor must be the name of a metric, got {self.monitor!r}")
        if self.best and self.monitor is None:
            raise ValueError(f"Retention.best={self.best} must know which metric is best: set monitor (and mode)")
        if self.last is None and not self.best and self.every is None:
            raise ValueError("Retention has no rule: set last, best or every, or retention=None to keep everything")


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """What a run does, and when.

    Attributes:
        unit: what ``total`` and plain cadences count: ``"iteration"`` or ``"epoch"``.
        total: how long to train, in units; ``math.inf`` for a run that some condition ends.
        accumulation_steps: micro-batches per process and iteration (iteration unit only).
        micro_batches: micro-batches per iteration over all processes; fixes the mathematics of the run
            whatever the number of processes. Default: ``accumulation_steps * world size``, or the
            world size in the epoch unit.
        reduction: the order in which an iteration's gradients are summed: ``"tree"`` (one fixed binary
            tree, the same bits for any number of processes) or ``"fold"`` (one after another).
        log_every: when a row of metrics is logged; default every 10 iterations.
        validate_every: when ``validate`` is called.
        checkpoint_every: when the state is saved; needs ``root``. A run with a root also saves its
            first and its last state.
        retention: which checkpoints stay; ``None`` keeps all.
        checkpoint_every_seconds: save also when the last save began so long ago (seconds, or a ``timedelta``): what
            a crash may cost in time. Like ``max_time`` it is looked at after each iteration, and changes no
            bit of the training and no row of the logs.
        async_save: write checkpoints in a thread while training goes on; the files are the same. Nothing is copied,
            since states do not change: a state stays in memory until it is on disk. At most one is on its way,
            and a run does not end before it.
        early_stop: end the run when validation no longer improves.
        max_time: the time limit of one launch (seconds, or a ``timedelta``), from the call on: after the first
            iteration beyond it the state is saved and the run ends with `Reason.TIME`. Leave room
            for one iteration, its validation and a save.
        root: the folder of the run; ``None`` keeps everything in memory.
        name: names the checkpoints and logs: letters, digits, ``_``, ``.`` and ``-``.
        resume: ``"auto"`` continues from the newest valid checkpoint or starts fresh; ``"last"`` and
            ``"best"`` (by the monitor of ``retention`` or ``early_stop``) insist that there is one; a path
            names one; ``None`` insists on a fresh start.
        non_finite: what to do when the loss or a gradient is NaN or infinite: ``"raise"``, ``"skip"``
            the update, ``"stop"``, or ``"rollback"`` to the last checkpoint and pass over the iteration.
        check_finite_every: how often (in iterations) non-finite values are looked for when nothing
            else (a save, the end) asks.
        collective_timeout: how long, in seconds or as a ``timedelta``, several processes wait for each other before
            the run fails with `PeerLost`.
        check_replicas_every: how often (in iterations) several processes compare their states, beside the
            first iteration of each launch.
        purity_checks: how many first iterations of each process are checked in full for purity.
        donate: whether steps may write the next state into the memory of the last one, which saves time and
            the memory of a second state; the bits are the same. ``"auto"``: in iterations after which nothing
            is due, and only where nobody can hold the state (no `iterate`, no ``should_stop``, no observer
            of every iteration). ``True``: in all iterations but the first ones and those after a save; states
            that others are shown are then good until the next iteration, and when something due after an
            iteration fails, the newest checkpoint is an older one. Needs a step that can donate, as those of
            `make_step` can, and rests under ``non_finite="skip"``.
        progress: show progress on the console.
        device: where batches are moved before they reach the step; ``None`` leaves them.

    Example:
        >>> hf.RunConfig(unit="epoch", total=3, accumulation_steps=4)
        Traceback (most recent call last):
            ...
        ValueError: accumulation_steps=4 needs unit='iteration'. In the epoch unit the optimiser...
    """

    unit: UnitName
    total: float
    accumulation_steps: int = 1
    micro_batches: int | None = None
    reduction: ReductionName = "tree"
    log_every: Cadence = dataclasses.field(default_factory=lambda: Every(10, "iteration"))
    validate_every: Cadence = None
    checkpoint_every: Cadence = None
    retention: Retention | None = None
    checkpoint_every_seconds: float | datetime.timedelta | None = None
    async_save: bool = True
    early_stop: EarlyStop | None = None
    max_time: float | datetime.timedelta | None = None
    root: str | Path | None = None
    name: str = "run"
    resume: str | Path | None = "auto"
    non_finite: NonFinite = "raise"
    check_finite_every: int = 50
    collective_timeout: float | datetime.timedelta = 600.0
    check_replicas_every: int = 1000
    purity_checks: int = 2
    donate: bool | Literal["auto"] = "auto"
    progress: bool = True
    device: Any = None

    def __post_init__(self) -> None:
        _check_choice("unit", self.unit, UnitName)
        _check_choice("reduction", self.reduction, ReductionName)
        _check_choice("non_finite", self.non_finite, NonFinite)
        if isinstance(self.total, float) and self.total.is_integer():
            object.__setattr__(self, "total", int(self.total))  # 1e4 is how people write ten thousand
        if self.total != math.inf:
            _check_count("total", self.total, " (or math.inf, with a stop condition)")
        _check_count("accumulation_steps", self.accumulation_steps)
        for field in ("check_finite_every", "check_replicas_every"):
            _check_count(field, getattr(self, field))
        if self.micro_batches is not None:
            _check_count("micro_batches", self.micro_batches)
        for field in ("log_every", "validate_every", "checkpoint_every"):
            _check_cadence(field, getattr(self, field))
        for field in ("max_time", "checkpoint_every_seconds", "collective_timeout"):
            _seconds(field, getattr(self, field))
        if self.collective_timeout is None:
            raise TypeError(
                "collective_timeout must be a number of seconds: without one a lost process is never noticed"
            )
        _check_choice("async_save", self.async_save, Literal[True, False])
        if type(self.purity_checks) is not int or self.purity_checks < 0:
            raise ValueError(f"purity_checks must be an integer of at least 0, got {self.purity_checks!r}")
        if self.donate not in (True, False, "auto"):
            raise ValueError(f"donate must be 'auto', True or False, got {self.donate!r}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.unit == "epoch" and self.accumulation_steps > 1:
            raise ValueError(
                f"accumulation_steps={self.accumulation_steps} needs unit='iteration'. In the epoch unit the "
                f"optimiser decides when to update: wrap it as hf.optim.every({self.accumulation_steps}, optimizer)"
            )
        if self.micro_batches is not None and self.accumulation_steps > 1:
            raise ValueError("give accumulation_steps or micro_batches, not both: micro_batches counts all processes")
        if not isinstance(self.name, str) or not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(
                f"name={self.name!r} cannot name files: use 1 to 64 letters, digits, '_', '.' and '-', "
                "starting with a letter or digit"
            )
        if self.root is not None and not (isinstance(self.root, str | os.PathLike) and str(self.root)):
            raise ValueError(f"root={self.root!r} names no folder: use a path, '.' for this folder, or None")
        if not (self.resume is None or (isinstance(self.resume, str | os.PathLike) and str(self.resume))):
            raise ValueError(f"resume={self.resume!r} must be 'auto', 'last', 'best', None or the path of a checkpoint")
        if self.early_stop is not None and not isinstance(self.early_stop, EarlyStop):
            raise TypeError(f"early_stop must be an hf.EarlyStop, got {type(self.early_stop).__name__}")
        self._check_monitors()
        for field in ("checkpoint_every", "checkpoint_every_seconds"):
            if self.root is None and getattr(self, field) is not None:
                raise ValueError(f"{field} needs a folder to save into: set root")
        if self.non_finite == "rollback" and self.root is None:
            raise ValueError("non_finite='rollback' needs checkpoints to go back to: set root")
        if self.early_stop is not None and self.validate_every is None:
            raise ValueError("early_stop looks at validation metrics: set validate_every")

    def _check_monitors(self) -> None:
        kept, watched = self.retention, self.early_stop
        if kept is not None and not isinstance(kept, Retention):
            raise TypeError(f"retention must be an hf.Retention, got {type(kept).__name__}")
        if kept is not None and self.root is None:
            raise ValueError("retention says which checkpoints stay, but there are none: set root")
        if kept is not None and kept.best and self.validate_every is None:
            raise ValueError("retention keeps the best by a validation metric: set validate_every")
        known = {(part.monitor, part.mode) for part in (kept, watched) if part is not None and part.monitor is not None}
        monitors = sorted({str(monitor) for monitor, _ in known})
        if len(monitors) < len(known):
            raise ValueError(f"retention and early_stop both watch {monitors[0]!r}, but in different modes")
        if self.resume == "best" and len(monitors) != 1:
            both = f": retention and early_stop watch {' and '.join(monitors)}; resume from a path instead"
            remedy = both if monitors else ": set retention or early_stop (monitor and mode)"
            raise ValueError(f"resume='best' must know which metric is best{remedy}")

    @property
    def monitored(self) -> Retention | EarlyStop | None:
        """The part whose ``monitor`` and ``mode`` say which checkpoint is best, if there is one."""
        parts = (self.retention, self.early_stop)
        return next((part for part in parts if part is not None and part.monitor is not None), None)

    def cadence(self, field: Literal["log_every", "validate_every", "checkpoint_every"]) -> Every | None:
        """A cadence with its unit spelled out."""
        value: Cadence = getattr(self, field)
        return Every(value, self.unit) if isinstance(value, int) else value

    def seconds(self, field: Literal["max_time", "checkpoint_every_seconds", "collective_timeout"]) -> float:
        """A duration in seconds; infinite where none is set."""
        return _seconds(field, getattr(self, field))

    def describe(self) -> dict[str, Json]:
        """The configuration as plain JSON values, for the manifest of a checkpoint.

        Without ``async_save``: a checkpoint is the same whichever way it was written.
        """
        names = [field.name for field in dataclasses.fields(self) if field.name != "async_save"]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # strict JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return getattr(value, "__qualname__", None) or str(value)


def _seconds(name: str, value: Any) -> float:
    if value is None:
        return math.inf
    seconds = value.total_seconds() if isinstance(value, datetime.timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, a datetime.timedelta or None, got {value!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a positive, finite number of seconds, got {value!r}")
    return float(seconds)


def _check_count(name: str, value: Any, remark: str = "") -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1{remark}, got {value!r}")


def _check_cadence(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Every):
        _check_count(name, value, ", an hf.Every, or None")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
