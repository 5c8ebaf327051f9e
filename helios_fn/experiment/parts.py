"""The sections of an experiment, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .fields import FREE


@dataclasses.dataclass(frozen=True)
class Part:
    """Something of a registry: its name, and the options that it is made with.

    In a file a table with ``name`` and the options, ``model = {name = "cnn", width = 32}``, or the name alone,
    ``model = "cnn"``. Options are numbers, texts, truth values, dates, lists and tables. An option that is called
    like a kind of part (``network``, ``dataset``, ``transform``, ``metric``, ...; ``lr`` for a schedule) and is a table
    with a name is such a part itself; so is each item of a list that is called by the plural (``metrics``), where
    a registered name alone will do.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata=FREE)

    def __post_init__(self) -> None:
        if "name" in self.options:
            raise ValueError("an option cannot be called 'name', which is the part's own")
        object.__setattr__(self, "options", _listed(self.options))


@dataclasses.dataclass(frozen=True)
class Update(Part):
    """The optimiser, and the gradient transforms before it, in order."""

    transforms: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True)
class StepPart(Part):
    """How a step is made of loss and optimiser; by default by `helios_fn.make_step`.

    ``average`` is kept in the state beside the parameters, such as ``{name = "ema", decay = 0.99}``.
    """

    name: str = "make_step"
    average: Part | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset and how it is read; all but ``dataset`` and ``transforms`` are arguments of `helios_fn.Loader`.

    ``transforms`` are applied to each sample one after another. A dataset that is a source of batches itself, such
    as a `Stream`, takes no other keys.
    """

    dataset: Part
    batch_size: int | None = None
    shuffle: bool | None = None
    order: Part | None = None
    drop_last: bool = False
    transforms: tuple[Part, ...] = ()
    collate: Part | None = None
    workers: int = 0
    prefetch: int = 2
    seed_globals: bool = True
    pin_memory: bool = False
    samples: int | None = None
    batches: int | float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation(Data):
    """What to evaluate on, unshuffled by default, and with which parameters."""

    params: Literal["params", "averages"] = "params"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which values are tried: a list for each key, the key with dots, such as ``optimizer.lr = [1e-3, 1e-2]``.

    Attributes:
        mode: ``"grid"``, all combinations, the last key fastest; or ``"zip"``, the first values of all lists, then
            the second ones, ...
        together: train all members as one `helios_fn.ensemble` instead of one after another.
        values: the lists.
    """

    mode: Literal["grid", "zip"] = "grid"
    together: bool = False
    values: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict, metadata=FREE)

    def __post_init__(self) -> None:
        values = _listed(dict(_flat(self.values)))
        if not values:
            raise ValueError("a sweep needs a list of values, such as optimizer.lr = [1e-3, 1e-2]")
        for path, each in values.items():
            if not isinstance(each, list) or not each:
                raise ValueError(f"{path} must be a list of the values to try, got {each!r}")
            if path.split(".")[0] in ("sweep", "discover"):
                raise ValueError(f"{path} is the same for all members, and cannot be swept over")
        lengths = {path: len(each) for path, each in values.items()}
        if self.mode == "zip" and len(set(lengths.values())) > 1:
            counts = ", ".join(f"{path} has {length}" for path, length in lengths.items())
            raise ValueError(f"mode='zip' needs lists of one length, but {counts}")
        object.__setattr__(self, "values", values)

    def changes(self) -> list[dict[str, Any]]:
        """What each member sets."""
        rows = (
            zip(*self.values.values(), strict=True) if self.mode == "zip" else itertools.product(*self.values.values())
        )
        return [dict(zip(self.values, row, strict=True)) for row in rows]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(value: Any) -> Any:
    """A copy in which tuples are lists, as they come out of a file."""
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value
