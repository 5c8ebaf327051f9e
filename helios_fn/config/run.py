"""The configuration of a run: frozen, validated once, and plain enough to be stored in a checkpoint."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..branching import Branch
from ..types import Json, ReductionName, UnitName
from .cadence import Cadence, Every, Total, check_cadence
from .checks import check_choice, check_count, check_portion, plain, seconds_of
from .retention import Retention
from .stopping import EarlyStop

NonFinite: TypeAlias = Literal["raise", "skip", "stop", "rollback"]
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """What a run does, and when.

    Attributes:
        unit: what ``total`` and plain cadences count: ``"iteration"`` or ``"epoch"``.
        total: how long to train, in units, or in another measure as a `Total` (samples, epochs, iterations);
            ``math.inf`` for a run that some condition ends: ``early_stop``, ``should_stop``, or ``max_time``.
        accumulation_steps: micro-batches per process and iteration (iteration unit only).
        micro_batches: micro-batches per iteration over all processes; fixes the mathematics of the run
            whatever the number of processes. Default: ``accumulation_steps * world size``, or the
            world size in the epoch unit.
        reduction: the order in which an iteration's gradients are summed: ``"tree"`` (one fixed binary
            tree, the same bits for any number of processes) or ``"fold"`` (one after another).
        log_every: when a row of metrics is logged; default every 10 iterations.
        fingerprint_every: when a `Fingerprint` is logged: digests of all leaves of the state and of the batch, by which
            ``python -m helios_fn compare`` finds where two runs part. Taken where a sink keeps them (`JsonLines`).
        validate_every: when ``validate`` is called.
        sanity_batches: before the first step of a fresh run, ``validate`` is tried on so many batches (a function of
            your own: called once), so that a fault in it costs no training. Nothing is recorded, and no bit changes.
        limit_train_batches: epochs end after so many batches (a float: after that fraction of them), as with
            `Loader.limit`; needs a `Loader`. A resume with another limit is refused, as with other data.
        limit_valid_batches: the same for a `Validator`, whose first batches are read; other functions know no batches.
        overfit_batches: every epoch reads the same first batches (or that fraction), unshuffled: `Loader.overfit`.
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
            for one iteration, its validation and a save. The clock is never part of a state: the next launch has the
            whole limit again, so with ``total=math.inf`` each launch trains on for that long.
        root: the folder of the run; ``None`` keeps everything in memory.
        name: names the checkpoints and logs: letters, digits, ``_``, ``.`` and ``-``.
        resume: ``"auto"`` continues from the newest valid checkpoint or starts fresh; ``"last"`` and
            ``"best"`` (by the monitor of ``retention`` or ``early_stop``) insist that there is one; a path
            names one; ``None`` insists on a fresh start; an `helios_fn.branch` starts from another run's, with changes.
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
    total: float | Total
    accumulation_steps: int = 1
    micro_batches: int | None = None
    reduction: ReductionName = "tree"
    log_every: Cadence = dataclasses.field(default_factory=lambda: Every(10, "iteration"))
    fingerprint_every: Cadence = None
    validate_every: Cadence = None
    sanity_batches: int = 0
    limit_train_batches: int | float | None = None
    limit_valid_batches: int | float | None = None
    overfit_batches: int | float | None = None
    checkpoint_every: Cadence = None
    retention: Retention | None = None
    checkpoint_every_seconds: float | datetime.timedelta | None = None
    async_save: bool = True
    early_stop: EarlyStop | None = None
    max_time: float | datetime.timedelta | None = None
    root: str | Path | None = None
    name: str = "run"
    resume: str | Path | Branch | None = "auto"
    non_finite: NonFinite = "raise"
    check_finite_every: int = 50
    collective_timeout: float | datetime.timedelta = 600.0
    check_replicas_every: int = 1000
    purity_checks: int = 2
    donate: bool | Literal["auto"] = "auto"
    progress: bool = True
    device: Any = None

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UnitName)
        check_choice("reduction", self.reduction, ReductionName)
        check_choice("non_finite", self.non_finite, NonFinite)
        if isinstance(self.total, float) and self.total.is_integer():
            object.__setattr__(self, "total", int(self.total))  # 1e4 is how people write ten thousand
        if self.total != math.inf and not isinstance(self.total, Total):
            check_count("total", self.total, " (or an hf.Total, or math.inf with a stop condition)")
        check_count("accumulation_steps", self.accumulation_steps)
        for field in ("check_finite_every", "check_replicas_every"):
            check_count(field, getattr(self, field))
        if self.micro_batches is not None:
            check_count("micro_batches", self.micro_batches)
        for field in ("log_every", "fingerprint_every", "validate_every", "checkpoint_every"):
            check_cadence(field, getattr(self, field))
        for field in ("max_time", "checkpoint_every_seconds", "collective_timeout"):
            seconds_of(field, getattr(self, field))
        if self.collective_timeout is None:
            raise TypeError(
                "collective_timeout must be a number of seconds: without one a lost process is never noticed"
            )
        check_choice("async_save", self.async_save, Literal[True, False])
        if type(self.purity_checks) is not int or self.purity_checks < 0:
            raise ValueError(f"purity_checks must be an integer of at least 0, got {self.purity_checks!r}")
        if type(self.sanity_batches) is not int or self.sanity_batches < 0:
            raise ValueError(f"sanity_batches must be an integer of at least 0, got {self.sanity_batches!r}")
        for field in ("limit_train_batches", "limit_valid_batches", "overfit_batches"):
            check_portion(field, getattr(self, field))
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
        named = isinstance(self.resume, str | os.PathLike) and str(self.resume)
        if not (named or isinstance(self.resume, Branch | None)):
            raise ValueError(f"resume={self.resume!r} must be 'auto', 'last', 'best', None or the path of a checkpoint")
        if self.early_stop is not None and not isinstance(self.early_stop, EarlyStop):
            raise TypeError(f"early_stop must be an hf.EarlyStop, got {type(self.early_stop).__name__}")
        self._check_monitors()
        for field in ("checkpoint_every", "checkpoint_every_seconds"):
            if self.root is None and getattr(self, field) is not None:
                raise ValueError(f"{field} needs a folder to save into: set root")
        if self.non_finite == "rollback" and self.root is None:
            raise ValueError("non_finite='rollback' needs checkpoints to go back to: set root")
        if self.overfit_batches is not None and self.limit_train_batches is not None:
            raise ValueError(
                "overfit_batches and limit_train_batches both say which batches are read: give one of them"
            )
        for field in ("sanity_batches", "limit_valid_batches"):
            if getattr(self, field) and self.validate_every is None:
                raise ValueError(f"{field} is about validation, of which there is none: set validate_every")
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

    @property
    def units(self) -> float:
        """``total`` in units of the run, which must have been counted: the driver does so when a run starts."""
        if isinstance(self.total, Total):
            raise TypeError(f"total={self.total} is counted when a run starts, from the size of its batches")
        return self.total

    def cadence(
        self, field: Literal["log_every", "fingerprint_every", "validate_every", "checkpoint_every"]
    ) -> Every | None:
        """A cadence with its unit spelled out."""
        value: Cadence = getattr(self, field)
        return Every(value, self.unit) if isinstance(value, int) else value

    def seconds(self, field: Literal["max_time", "checkpoint_every_seconds", "collective_timeout"]) -> float:
        """A duration in seconds; infinite where none is set."""
        return seconds_of(field, getattr(self, field))

    def describe(self) -> dict[str, Json]:
        """The configuration as plain JSON values, for the manifest of a checkpoint.

        Without ``async_save``: a checkpoint is the same whichever way it was written.
        """
        names = [field.name for field in dataclasses.fields(self) if field.name != "async_save"]
        return {name: plain(getattr(self, name)) for name in names}
