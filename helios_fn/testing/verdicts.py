"""The bad outcomes of a check: the law does not hold, says nothing here, or there was nothing to check."""

from __future__ import annotations


class LawBroken(AssertionError):
    """A law does not hold; the message says where two runs differ first, and where to look."""


class LawDoesNotApply(ValueError):
    """A law says nothing about this job, such as one of exact sums where noise is drawn; the message says why."""


class JobFailed(RuntimeError):
    """The job itself failed, without any interruption, so no law could be checked; its error is the cause."""
