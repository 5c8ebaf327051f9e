"""Several processes log as one."""

from __future__ import annotations

import logging

import pytest

from helios_fn.distributed.logs import logs_of_rank

LOGGER = logging.getLogger("helios_fn")


def said(caplog, rank, size):
    caplog.clear()
    with caplog.at_level(logging.DEBUG), logs_of_rank(rank, size):
        LOGGER.info("saved %s", "x")
        LOGGER.warning("100%% of %d", 3)
        logging.getLogger("mine").info("own")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        (0, 1, ["saved x", "100% of 3", "own"]),
        (0, 3, ["saved x", "[rank 0] 100% of 3", "own"]),
        (2, 3, ["[rank 2] 100% of 3", "own"]),
    ],
)
def test_rank_0_tells_all_and_the_others_what_is_wrong(caplog, rank, size, expected):
    """Other loggers are not touched."""
    assert said(caplog, rank, size) == expected


def test_within_another_context_nothing_is_said_twice(caplog):
    """A run inside a run has the same rank."""
    with logs_of_rank(2, 3):
        assert said(caplog, 2, 3) == ["[rank 2] 100% of 3", "own"]
        assert said(caplog, 2, 3) == ["[rank 2] 100% of 3", "own"]


def test_it_undoes_itself(caplog):
    """Also after an error; handlers and levels stay as they were."""
    before = (list(LOGGER.filters), list(LOGGER.handlers), LOGGER.level)
    with pytest.raises(ZeroDivisionError), logs_of_rank(1, 2):
        raise ZeroDivisionError
    assert (list(LOGGER.filters), list(LOGGER.handlers), LOGGER.level) == before
