"""How often something happens, and how long a run is."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

from ..types import UnitName
from .checks import check_choice, check_count


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
        check_count("Every.n", self.n)
        check_choice("Every.unit", self.unit, UnitName)


@dataclasses.dataclass(frozen=True, slots=True)
class Total:
    """The length of a run in another measure than its unit: ``RunConfig(total=hf.Total(1_000_000, "sample"))``.

    Turned into units of the run once, when it starts, from the size of the batches; always up, to whole iterations (in
    the epoch unit to whole epochs). So a run never trains on less than it was told, and on more by less than one unit.
    Where the data does not tell its length (a stream, phases of different ones), the run is refused.

    Attributes:
        n: how many.
        unit: ``"iteration"``, ``"epoch"`` or ``"sample"``; samples are counted over all processes.
    """

    n: int
    unit: Literal["iteration", "epoch", "sample"]

    def __post_init__(self) -> None:
        n: Any = self.n
        if isinstance(n, float) and n.is_integer():
            object.__setattr__(self, "n", int(n))  # 1e6 is how people write a million
        check_count("Total.n", self.n)
        check_choice("Total.unit", self.unit, Literal["iteration", "epoch", "sample"])


Cadence: TypeAlias = int | Every | None
"""How often something happens: a number of the run's units, an `Every`, or ``None`` for never."""


def check_cadence(name: str, value: Any) -> None:
    """Refuse what is no `Cadence`; raises ValueError."""
    if value is not None and not isinstance(value, Every):
        check_count(name, value, ", an hf.Every, or None")
