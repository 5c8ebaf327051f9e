"""What several processes log: rank 0 everything, the others only what is wrong, with their number."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logs_of_rank(rank: int, size: int) -> Iterator[None]:
    """Within this context, the logger "helios_fn" speaks once for all processes.

    Ranks above 0 drop what is less than a warning; a warning or an error begins with ``[rank 2]``, that of rank 0
    with ``[rank 0]``. Nothing changes for a process that is alone, or within another such context. Only records of
    this one logger are looked at; handlers and other loggers stay as they are.

    Args:
        rank: this process's number.
        size: the number of processes.
    """
    if size == 1:
        yield
        return
    logger, rule = logging.getLogger("helios_fn"), _Rule(rank)
    if any(isinstance(other, _Rule) for other in logger.filters):  # a run inside another one: said once is enough
        yield
        return
    logger.addFilter(rule)
    try:
        yield
    finally:
        logger.removeFilter(rule)


class _Rule(logging.Filter):
    """A filter that drops or marks records."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return self._rank == 0
        # The text may hold per cent signs for the arguments; the rank holds none.
        record.msg = f"[rank {self._rank}] {record.msg}"
        return True
