"""Exception types that are raised unchanged, as a user lists them."""

from __future__ import annotations

from collections.abc import Iterable

PassThrough = tuple[type[BaseException], ...]


def checked_types(pass_through: Iterable[type[BaseException]]) -> PassThrough:
    """The exception types as a tuple; raises TypeError for anything else."""
    types = tuple(pass_through)
    for each in types:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"pass_through lists exception types, got {each!r}")
    return types
