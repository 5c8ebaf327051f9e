"""The errors that somebody may want to catch. All others are ValueError or TypeError."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PurityError(RuntimeError):
    """A step wrote to its input, drew from a global generator, or changed the state's structure."""


class NonFiniteError(ArithmeticError):
    """The loss or a gradient was NaN or infinite and the policy is to raise."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or cannot be written."""


class ResumeRefused(CheckpointError):
    """A checkpoint is sound but belongs to another run: going on would not give the same bits."""


class RootLocked(CheckpointError):
    """Another process is using the same run folder."""


class StateOverwritten(CheckpointError, PurityError):
    """A state was written to while it was being saved. The checkpoint is dropped, and what followed is not trusted."""


class RunFailed(RuntimeError):
    """Training stopped by an exception, which is this one's ``__cause__``.

    Attributes:
        state: the last complete state.
        iteration: completed iterations at that state; the failure happened in the next one.
        batch: shapes and dtypes of the batch that was being processed, in one line.
        checkpoint: where ``state`` was saved, or ``None`` when there is no root or saving it was
            not possible.
    """

    def __init__(
        self,
        message: str,
        *,
        state: Any = None,
        iteration: int = 0,
        batch: str = "",
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.state = state
        self.iteration = iteration
        self.batch = batch
        self.checkpoint = checkpoint


class StateDonated(RuntimeError):
    """A state is used after a donating step has written the next one into its memory."""


class NotTraceable(RuntimeError):
    """A function that is to be compiled into one graph, or mapped over members, does something that cannot be."""


class PeerLost(RuntimeError):
    """Another process of the job is missing: it failed, left, was killed or frozen, or its machine is cut off.

    Attributes:
        ranks: the processes that are missing, as far as it is known. The one that raises is not the cause.
    """

    def __init__(self, message: str, *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class LaunchFailed(RuntimeError):
    """Not every process that `helios_fn.distributed.launch` started has returned a value.

    Attributes:
        rank: the rank that failed first, as far as this can be told: one that only lost a peer is not meant.
        failures: what happened to each rank that returned nothing, with its traceback where there is one.
    """

    def __init__(self, message: str, *, rank: int = 0, failures: dict[int, str] | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.failures = {} if failures is None else failures
