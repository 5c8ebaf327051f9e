"""A run that starts from another run's checkpoint, with what is changed said by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Branch:
    """Where a branch begins and what it changes; made by `branch`, for ``RunConfig.resume``.

    Attributes:
        checkpoint: the folder of the checkpoint to start from.
        lift: names of facts, or patterns of them, that may differ from the other run's.
        override: new values of leaves of the state, by name.
        note: why.
    """

    checkpoint: Path
    lift: tuple[str, ...] = ()
    override: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint, str | os.PathLike):
            raise TypeError(f"checkpoint must be the folder of a checkpoint, got {type(self.checkpoint).__name__}")
        if not os.fspath(self.checkpoint):
            raise ValueError("checkpoint names no folder: give that of a checkpoint, <root>/checkpoints/<name>")
        names = (self.lift,) if isinstance(self.lift, str) else tuple(self.lift)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"lift lists names of facts such as 'data.batch_size', got {names!r}")
        if not isinstance(self.override, Mapping):
            raise TypeError(f"override maps names of leaves to new values, got {type(self.override).__name__}")
        if not isinstance(self.note, str):
            raise TypeError(f"note must be a text, got {type(self.note).__name__}")
        for name, value in (
            ("checkpoint", Path(self.checkpoint)), ("lift", names), ("override", dict(self.override)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"branch of {self.checkpoint.name}"


def branch(
    checkpoint: str | os.PathLike[str],
    *,
    lift: str | Iterable[str] = (),
    override: Mapping[str, Any] | None = None,
    note: str = "",
) -> Branch:
    """Start a new root from a checkpoint of another run, changing by name what an ordinary resume would refuse.

        cfg = hf.RunConfig(
            ..., root="runs/lower", resume=hf.branch(
                "runs/digits/checkpoints/digits_epoch_3_iter_72",
                lift=["data.batch_size", "data.batches_per_epoch"], override={"opt_state.hyper.lr": 1e-4},
            ),
        )

    In the file of an experiment the same is a table: ``resume = {checkpoint = "...", lift = ["data.batch_size"]}``.

    Run the same line again after any interruption and the branch goes on from its own newest checkpoint; it keeps
    the law of resumption. Each of its checkpoints records in its ``history`` the run it came from (and that one's
    history), the digest of the state there, and every change with the old and the new value;
    ``python -m helios_fn inspect`` shows it.

    Where facts of the data change, positions in the old data mean nothing: an epoch that was begun counts as done,
    and the branch starts at the beginning of the next. Where ``seed`` is lifted, the new one takes over.

    Args:
        checkpoint: the folder of a checkpoint in another root.
        lift: names of the facts that may differ, as the refusal of an ordinary resume prints them
            (``"micro_batches"``, ``"data.batch_size"``), or shell patterns (``"data.*"``). All others are refused as
            ever; so is another structure of the state, for which there is `helios_fn.restore`.
        override: new values by leaf, see `helios_fn.override`.
        note: a remark for the history.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``checkpoint`` is empty.
    """
    changes = {} if override is None else override
    return Branch(checkpoint, lift, changes, note)  # type: ignore[arg-type]  # which makes of them what it annotates
