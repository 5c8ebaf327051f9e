"""The two bad outcomes of a check: the law does not hold, or there was nothing to check."""

from __future__ import annotations


class LawBroken(AssertionError):
    """A law does not hold; the message says where two runs differ first, and where to look."""


class JobFailed(RuntimeError):
    """The job itself failed, without any interruption, so no law could be checked; its error is the cause."""
