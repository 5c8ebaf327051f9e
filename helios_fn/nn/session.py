"""Keeping weights in place until gradients are computed.

A module that recomputes activations (``torch.utils.checkpoint``) reads its weights again during the
backward pass, after its call has returned. Inside a `Session` a called module therefore keeps the
weights of that call until the session ends.
"""

from __future__ import annotations

import threading
from typing import Protocol, Self


class Loan(Protocol):
    """Something that is given back at the end of a session."""

    def close(self) -> None:
        """Give it back."""


class _Current(threading.local):
    session: Session | None = None


_current = _Current()


class Session:
    """A context manager; sessions of one thread nest, and the innermost one holds the loans."""

    __slots__ = ("_outer", "loans")

    def __init__(self) -> None:
        self.loans: list[Loan] = []

    def __enter__(self) -> Self:
        self._outer = _current.session
        _current.session = self
        return self

    def __exit__(self, *exception: object) -> None:
        _current.session = self._outer
        for loan in self.loans:
            loan.close()
        self.loans.clear()


def current() -> Session | None:
    """The session that this thread is in."""
    return _current.session
