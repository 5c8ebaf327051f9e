"""A process's place among all, as torchrun's environment variables tell it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that have to be there together. The first four make a `Place`; the others, where all meet."""

_NUMBERS = NAMES[:4]


class Place(NamedTuple):
    """Where a process stands. The default is a process that is alone.

    Attributes:
        rank: its number among all processes, from 0.
        size: the number of all processes.
        local_rank: its number among those on its machine, from 0.
        local_size: the number of those on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def is_launched(environ: Mapping[str, str] | None = None) -> bool:
    """Whether somebody (torchrun, `launch`) has given this process a place, if only that of one among one.

    An address and port alone do not count: clusters set them for every job.
    """
    environ = os.environ if environ is None else environ
    return any(environ.get(name) for name in _NUMBERS)


def place(environ: Mapping[str, str] | None = None) -> Place:
    """The place that the environment variables give to this process; alone where there are none.

    Args:
        environ: the variables; an empty one counts as absent. Default: ``os.environ``.

    Raises:
        ValueError: only some of `NAMES` are set, or they are no numbers, or contradict each other.
    """
    environ = os.environ if environ is None else environ
    if not is_launched(environ):
        return Place()
    missing = [name for name in NAMES if not environ.get(name)]
    if missing:
        present = ", ".join(f"{name}={environ[name]}" for name in NAMES if environ.get(name))
        raise ValueError(
            f"the environment gives this process a place only in part: {', '.join(missing)} not set, but {present}. "
            "torchrun sets all of them; to run alone, unset these"
        )
    found = Place(*(_number(environ, name) for name in _NUMBERS))
    port = _number(environ, "MASTER_PORT")
    if not 0 < port < 2**16:
        raise ValueError(f"MASTER_PORT={port} is not a port: it must be in 1..65535")
    _check(found)
    return found


def variables(here: Place, address: str, port: int) -> dict[str, str]:
    """The environment variables for a process at ``here`` of all that meet at ``address`` and ``port``.

    The inverse of `place`: ``place(variables(p, address, port)) == p``.
    """
    return dict(zip(NAMES, map(str, (*here, address, port)), strict=True))


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"the environment variable {name}={environ[name]!r} is not an integer") from None


def _check(found: Place) -> None:
    for number, count in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        at, of = (found[_NUMBERS.index(name)] for name in (number, count))
        if not 0 <= at < of:
            raise ValueError(f"{number}={at} with {count}={of}: it must be at least 0 and less than {count}")
    # The ranks of a machine are among all ranks, and in the same order.
    before, after = found.rank - found.local_rank, found.size - found.rank - (found.local_size - found.local_rank)
    if before < 0 or after < 0:
        told = ", ".join(f"{name}={value}" for name, value in zip(_NUMBERS, found, strict=True))
        raise ValueError(f"{told} contradict each other: the ranks of one machine must be among all ranks, in order")
