"""An experiment: a run as data, read from a TOML file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig
from ..registry import check_names
from ..state import DEFAULT_SEED
from . import toml
from .fields import read, table_of
from .parts import Data, Evaluation, Part, StepPart, Sweep, Update
from .source import Source

if TYPE_CHECKING:
    from .build import Built


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run is made of, as plain data: which parts of the registries with which options, and a `RunConfig`.

        discover = ["my_project"]
        seed = 1

        [run]
        unit = "epoch"
        total = 20
        root = "runs/digits"

        [data]
        dataset = "digits"
        batch_size = 64

        [model]
        name = "classifier"
        width = 32

        [loss]
        name = "cross_entropy"

        [optimizer]
        name = "adamw"
        transforms = [{name = "clip_by_global_norm", max_norm = 1.0}]

        [schedule]
        name = "cosine"
        start = 1e-3
        steps = 460

    Law: ``Experiment.loads(experiment.dumps()) == experiment``.

    Attributes:
        run: see `RunConfig`. ``false`` stands for ``None`` where that is not the default.
        data: what is trained on.
        model: of `MODELS`; its initial weights are a function of ``seed``.
        loss: of `LOSSES`. Validation and test call it with the model in eval form, and report it and its metrics.
        optimizer: of `OPTIMIZERS`, and gradient transforms.
        schedule: of `SCHEDULES`: the optimiser's ``lr``.
        step: of `STEPS`, and the average that it keeps.
        valid: what validation reads; ``run.validate_every`` says when, and if it is not set, never.
        test: what ``python -m helios_fn test`` reads; by default what validation reads.
        sinks: of `SINKS`, such as ``["jsonl", "tensorboard"]``.
        observers: of `OBSERVERS`.
        seed: of the whole run.
        discover: packages that register parts; see `helios_fn.registry.discover`. `build` imports them.
        sweep: values to try instead; see `members`.
    """

    run: RunConfig
    data: Data
    model: Part
    loss: Part
    optimizer: Update
    schedule: Part | None = None
    step: StepPart = dataclasses.field(default_factory=StepPart)
    valid: Evaluation | None = None
    test: Evaluation | None = None
    sinks: tuple[Part, ...] = ()
    observers: tuple[Part, ...] = ()
    seed: int = DEFAULT_SEED
    discover: tuple[str, ...] = ()
    sweep: Sweep | None = None

    def __post_init__(self) -> None:
        check_names(self.discover)
        if self.schedule is not None and "lr" in self.optimizer.options:
            raise ValueError("optimizer.lr and [schedule] both give the learning rate: leave one out")
        if self.run.validate_every is not None and self.valid is None:
            raise ValueError("run.validate_every is set, but there is nothing to validate on: add a section [valid]")
        averaged = [name for name in ("valid", "test") if getattr(getattr(self, name), "params", "") == "averages"]
        if averaged and self.step.average is None:
            raise ValueError(
                f"{averaged[0]}.params = 'averages', but the step keeps none: set step.average, such as "
                '{name = "ema", decay = 0.99}'
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Read a file. Nothing is imported or built.

        ``overrides`` maps keys with dots to values, ``{"optimizer.lr": 1e-3}``: the same as editing the file.

        Raises:
            ValueError: something in the file or an override is wrong; the message has the file, the line, and for a
                name that does not exist the closest one.
            OSError: there is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not TOML: it is not in UTF-8 ({error})") from None
        return cls._of(Source(text, os.fspath(path), overrides))

    @classmethod
    def loads(
        cls, text: str, overrides: Mapping[str, Any] | None = None, *, name: str = "the experiment"
    ) -> Experiment:
        """Read a text; ``name`` is what messages call it. Otherwise like `load`."""
        return cls._of(Source(text, name, overrides))

    @classmethod
    def _of(cls, source: Source) -> Experiment:
        try:
            experiment = read(cls, source.table, source)
        except RecursionError:
            raise ValueError(f"{source.name} is nested too deeply") from None
        object.__setattr__(experiment, "_source", source)
        return experiment

    def dumps(self) -> str:
        """The experiment as a TOML text, without what is as by default.

        Raises:
            TypeError: it holds something that TOML has no form for, such as a function.
        """
        return toml.dump(table_of(self))

    def replace(self, overrides: Mapping[str, Any], *, by: str = "the override of") -> Experiment:
        """The experiment with some keys set, as by the ``overrides`` of `load`; raises as it does.

        ``by`` is what messages call that.
        """
        return self._of(self.source.changed(self.dumps(), overrides, by))

    def members(self) -> dict[str, Experiment]:
        """The experiments of the sweep by what differs, ``"lr=0.001,seed=1"``; without a sweep this one, named ``""``.

        A member's folder is ``run.root`` with that name below it.

        Raises:
            ValueError: a key of the sweep does not exist, or a value does not fit.
        """
        from .sweeps import members

        return members(self)

    def build(self, *, discover: bool = True) -> Built:
        """Import the packages of ``discover``, unless told not to, and make all parts.

        Raises:
            ValueError: a part is not registered, or cannot be made with its options.
            ImportError: a package cannot be imported.
        """
        from .build import build

        return build(self, discover=discover)

    @property
    def source(self) -> Source:
        """Where the experiment was read, for messages."""
        return self.__dict__.get("_source") or Source("", "the experiment")
