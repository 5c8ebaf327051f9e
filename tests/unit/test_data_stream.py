"""Streams: read from front to back, and continued from the position of the last consumed batch."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import random, tree
from helios_fn.data import Stream
from helios_fn.types import Cursor, Share, Source

KEY = random.key(6691)
START, ALONE = Cursor(), Share()


def numbers(n):
    """A stream of ``n`` samples with noise of its own and from the globals; positions are dicts."""

    def open_at(position, key):
        words = random.numpy_generator(key).random(n)
        for index in range(0 if position is None else position["next"], n):
            yield (index, words[index], torch.rand(1), python_random.random()), {"next": index + 1}

    return open_at


def read(stream, iterations, cursor=START, share=ALONE):
    feed = stream.open(cursor, key=KEY, share=share)
    deliveries = [next(feed) for _ in range(iterations)]
    feed.close()
    return deliveries


def indices(deliveries):
    return [item[0].tolist() for delivery in deliveries for item in delivery.items]


@given(n=st.integers(1, 12), batch_size=st.integers(1, 5), micro=st.integers(1, 4), at=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_a_stream_continues_from_any_cursor(n, batch_size, micro, at):
    """Resume: the deliveries after a cursor, and their cursors, do not depend on where reading began."""
    stream = Stream(numbers(n), batch_size)
    share = Share(micro_batches=micro)
    deliveries = read(stream, at + 3, share=share)
    assert tree.equal(read(stream, 3, deliveries[at - 1].cursor, share), deliveries[at:])


@given(n=st.integers(1, 12), batch_size=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_each_pass_gives_each_sample_once_and_the_tail_is_shorter(n, batch_size):
    """A pass is the stream, cut into batches."""
    stream = Stream(numbers(n), batch_size)
    passes = [[batch[0].tolist() for batch in stream.epoch(KEY, epoch)] for epoch in (0, 1)]
    whole = list(range(n))
    assert passes[0] == passes[1] == [whole[start : start + batch_size] for start in range(0, n, batch_size)]
    per_pass = len(passes[0])
    assert indices(read(stream, 2 * per_pass)) == passes[0] + passes[1]


@given(n=st.integers(1, 12), batch_size=st.integers(1, 5), world=st.integers(1, 4), extra=st.integers(0, 2))
@settings(deadline=None, max_examples=25)
def test_the_ranks_of_any_world_share_what_one_process_reads(n, batch_size, world, extra):
    """The union of all ranks' micro-batches, in rank order, is the delivery of a world of one."""
    stream = Stream(numbers(n), batch_size)
    alone = read(stream, 4, share=Share(micro_batches=world + extra))
    ranks = [read(stream, 4, share=Share("iteration", world + extra, rank, world)) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert tree.equal([item for part in parts for item in part.items], list(whole.items))
        assert all((part.count, part.cursor) == (whole.count, whole.cursor) for part in parts)


def test_cursors_hold_the_position_of_the_last_consumed_batch():
    """A ragged tail shows that the pass is over; a full last batch does not, and the next one counts from 0."""
    ragged = read(Stream(numbers(5), 2), 4)
    assert [d.cursor for d in ragged] == [
        Cursor(0, 0, 1, {"next": 2}),
        Cursor(0, 0, 2, {"next": 4}),
        Cursor(0, 1, 0, None),
        Cursor(0, 1, 1, {"next": 2}),
    ]
    even = read(Stream(numbers(4), 2), 3)
    assert [d.cursor for d in even] == [
        Cursor(0, 0, 1, {"next": 2}),
        Cursor(0, 0, 2, {"next": 4}),
        Cursor(0, 1, 1, {"next": 2}),
    ]


def test_positions_are_copied():
    """A stream may go on changing the object that it yielded."""

    def open_at(position, key):
        position = position or [0]
        while True:
            position[0] += 1
            yield position[0], position

    cursors = [delivery.cursor.position for delivery in read(Stream(open_at, 1), 3)]
    assert cursors == [[1], [2], [3]]


def test_passes_and_phases_have_keys_of_their_own():
    """Noise of one pass does not come back in the next."""
    stream = Stream(numbers(3), 3)
    first, second = (next(stream.epoch(KEY, epoch)) for epoch in (0, 1))
    assert all(not torch.equal(first[i], second[i]) for i in (1, 2, 3))
    other = read(stream, 1, Cursor(phase=1))[0].items[0]
    assert not torch.equal(first[1], other[1])


def test_the_global_random_state_is_untouched():
    """Whatever the stream draws."""
    before = random.ambient_fingerprint()
    read(Stream(numbers(5), 2), 4)
    list(Stream(numbers(5), 2).epoch(KEY))
    assert random.drawn(before, random.ambient_fingerprint()) == []


def test_collate_may_draw_too():
    """Seeded per batch, the same after a resume."""
    stream = Stream(numbers(9), 2, collate=lambda samples: torch.rand(len(samples)))
    deliveries = read(stream, 4)
    assert tree.equal(read(stream, 2, deliveries[1].cursor), deliveries[2:])


def test_an_empty_pass_is_an_error():
    """Instead of an endless search for data."""
    with pytest.raises(ValueError, match="'nothing' yields nothing from its start"):
        read(Stream(lambda position, key: iter(()), 2, description="nothing"), 1)
    with pytest.raises(ValueError, match="yields nothing"):
        list(Stream(lambda position, key: iter(()), 2).epoch(KEY))


def test_epoch_cadences_are_refused():
    """A stream does not tell how long its epochs are; the message names both ways out."""
    with pytest.raises(ValueError, match=r"unit='iteration', or .*hf\.Loader"):
        Stream(numbers(3), 1).open(Cursor(), key=KEY, share=Share("epoch"))


@pytest.mark.parametrize(
    ("position", "where"),
    [
        (None, "position"),
        ((1, 2), "position"),
        ([1, np.int64(2)], r"position\[1\]"),
        ({"shard": {"at": torch.tensor(1)}}, r"position\['shard'\]\['at'\]"),
        ({1: 2}, "position"),
    ],
)
def test_positions_must_be_json(position, where):
    """The message says which part is not."""
    with pytest.raises(TypeError, match=where + " of a stream is stored in checkpoints as JSON"):
        read(Stream(lambda _, key: iter([(0, position)]), 1), 1)


def test_samples_come_with_positions():
    """Anything but a pair is refused."""
    with pytest.raises(TypeError, match="yields pairs of a sample and the position after it, got 7"):
        read(Stream(lambda position, key: iter([7]), 1), 1)


def test_a_failing_stream_says_where_and_does_not_go_on():
    """The error names batch, epoch and position; reading on is refused."""

    def open_at(position, key):
        yield from numbers(3)(position, key)
        raise OSError("cable")

    feed = Stream(open_at, 2, description="wire").open(Cursor(), key=KEY, share=Share())
    next(feed)
    with pytest.raises(RuntimeError, match=r"'wire' failed at batch 1 of epoch 0.*'next': 2.*OSError: cable"):
        next(feed)
    with pytest.raises(RuntimeError, match="failed before"):
        next(feed)


def test_closing_a_feed_closes_its_iterator():
    """So files do not stay open."""
    closed = []

    def open_at(position, key):
        try:
            for index in range(9):
                yield index, index
        finally:
            closed.append(True)

    feed = Stream(open_at, 2).open(Cursor(), key=KEY, share=Share())
    next(feed)
    feed.close()
    assert closed == [True]
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)


def test_a_stream_is_a_source_and_describes_itself():
    """What decides the bytes, as far as it can be told."""
    stream = Stream(numbers(3), 4, description="numbers")
    assert isinstance(stream, Source)
    assert stream.batches_per_epoch is None
    assert stream.describe() == {"kind": "stream", "description": "numbers", "batch_size": 4}
    stream.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"open": [1]}, TypeError, "open must be a function"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"collate": 1}, TypeError, "collate must be a function, got 1"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    """When the stream is made."""
    with pytest.raises(error, match=message):
        Stream(**{"open": numbers(3), "batch_size": 1, **arguments})
