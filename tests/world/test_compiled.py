"""The exchange within a graph is the exchange outside of it."""

from __future__ import annotations

from . import compiled


def test_a_compiled_step_of_ones_own_exchanges_as_one_that_is_not(pool):
    """The same bits in one process and in two, traced into one graph with its exchange; buffers may be empty."""
    digests = {compiled.trained(False), compiled.trained(True), *pool(compiled.trained, True, processes=2)}
    assert len(digests) == 1
