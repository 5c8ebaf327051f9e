"""The loader in the main process: batches are a pure function of (key, position)."""

from __future__ import annotations

import contextlib
import pickle
import random as python_random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from helios_fn import random, tree
from helios_fn.data import CustomBatches, CustomOrder, Loader, Sequential, Shuffled
from helios_fn.types import Cursor, Share, Source

KEY = random.key(6691)
START, ALONE = Cursor(), Share()


class Numbers:
    """Sample i is i."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return index


class Ambient(Numbers):
    """Draws from the global generators of torch, Python and NumPy."""

    def __getitem__(self, index):
        return index, torch.rand(2), python_random.random(), np.random.rand(2)


class Keyed(Numbers):
    """Draws from the generator that it is given."""

    def keyed_item(self, index, rng):
        return index, rng.standard_normal(3)


def jitter(sample, rng):
    return sample + rng.random()


def read(loader, iterations, cursor=START, share=ALONE, key=KEY):
    """The next deliveries, the feed closed."""
    feed = loader.open(cursor, key=key, share=share)
    deliveries = [next(feed) for _ in range(iterations)]
    feed.close()
    return deliveries


sizes = st.tuples(st.integers(1, 60), st.integers(1, 17), st.booleans()).filter(lambda s: not s[2] or s[0] >= s[1])


@given(size=sizes, shuffle=st.booleans(), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_each_epoch_visits_each_sample_once(size, shuffle, epoch):
    """With drop_last, all but the ragged tail; otherwise the last batch is shorter."""
    n, batch_size, drop_last = size
    loader = Loader(Numbers(n), batch_size, shuffle=shuffle, drop_last=drop_last, seed_globals=False)
    batches = [batch.tolist() for batch in loader.epoch(KEY, epoch)]
    seen = [index for batch in batches for index in batch]
    assert len(batches) == len(loader) == loader.batches_per_epoch
    assert len(seen) == len(set(seen)) == (n - n % batch_size if drop_last else n)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if not shuffle:
        assert seen == list(range(len(seen)))


@given(size=sizes, start=st.integers(0, 200), count=st.integers(1, 6), unit=st.sampled_from(["iteration", "epoch"]))
@settings(deadline=None, max_examples=40)
def test_a_feed_opened_anywhere_continues_the_one_from_the_start(size, start, count, unit):
    """Resume: the deliveries after a cursor do not depend on where reading began."""
    n, batch_size, drop_last = size
    loader = Loader(Keyed(n), batch_size, drop_last=drop_last)
    start %= 3 * loader.batches_per_epoch
    share = Share(unit, count)
    deliveries = read(loader, start + 3, share=share)
    cursor = deliveries[start - 1].cursor if start else Cursor()
    assert tree.equal(read(loader, 3, cursor, share), deliveries[start:])


@given(size=sizes, world=st.integers(1, 4), extra=st.integers(0, 3), unit=st.sampled_from(["iteration", "epoch"]))
@settings(deadline=None, max_examples=40)
def test_the_ranks_of_any_world_share_what_one_process_reads(size, world, extra, unit):
    """The union of all ranks' micro-batches, in rank order, is the delivery of a world of one."""
    n, batch_size, drop_last = size
    loader = Loader(Keyed(n), batch_size, drop_last=drop_last)
    micro = world + extra
    alone = read(loader, 4, share=Share(unit, micro))
    ranks = [read(loader, 4, share=Share(unit, micro, rank, world)) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert tree.equal([item for part in parts for item in part.items], list(whole.items))
        assert {(part.count, part.cursor) for part in parts} == {(whole.count, whole.cursor)}
        starts = np.cumsum([0] + [len(part.items) for part in parts])[:-1]
        assert [part.start for part in parts] == starts.tolist()


def test_cursors_are_normalised():
    """After the last batch of epoch e the cursor reads (e + 1, 0)."""
    deliveries = read(Loader(Numbers(5), 2, seed_globals=False), 4)
    assert [delivery.cursor[1:3] for delivery in deliveries] == [(0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.mark.parametrize("dataset", [Ambient(11), Keyed(11)], ids=["globals", "generator"])
def test_a_sample_has_the_same_noise_in_whatever_batch_it_comes(dataset):
    """Noise depends on (key, epoch, index): another batch size or order changes none of it, another epoch all."""

    def by_index(loader, epoch=0, key=KEY):
        found = {}
        for index, *noise in (columns for batch in loader.epoch(key, epoch) for columns in zip(*batch, strict=True)):
            found[int(index)] = [torch.as_tensor(part).tolist() for part in noise]
        return found

    reference = by_index(Loader(dataset, 4))
    assert by_index(Loader(dataset, 3, shuffle=False)) == reference
    assert by_index(Loader(dataset, 11).take(11)) == reference
    later, other = by_index(Loader(dataset, 4), epoch=1), by_index(Loader(dataset, 4), key=random.key(1))
    assert all(later[i] != reference[i] != other[i] for i in range(11))
    assert len({str(noise) for noise in reference.values()}) == 11


def test_transforms_get_a_generator_of_their_sample():
    """Equal for the same sample and epoch, different for others."""
    first, second = (list(Loader(Numbers(6), 3, transform=jitter).epoch(KEY)) for _ in range(2))
    assert tree.equal(first, second)
    noise = torch.cat(first) % 1
    assert len(set(noise.tolist())) == 6


def test_collate_functions_may_draw():
    """Mixing within a batch is a function of (key, epoch, batch): the same whenever the batch is read."""

    def mix(samples):
        return torch.tensor(samples)[torch.randperm(len(samples))] + torch.rand(1)

    loader = Loader(Numbers(12), 4, collate=mix)
    whole = read(loader, 5)
    assert tree.equal(read(loader, 2, whole[2].cursor), whole[3:])


def ambient_states():
    return python_random.getstate(), str(np.random.get_state()), torch.default_generator.get_state().tolist()


@pytest.mark.parametrize("make", [Ambient, Keyed], ids=["globals", "generator"])
def test_reading_leaves_the_global_random_state_alone(make):
    """Whatever samples draw, the main process draws on as if nothing had been read."""
    before = ambient_states()
    read(Loader(make(9), 2, transform=None), 7)
    list(Loader(make(9), 2).epoch(KEY))
    assert ambient_states() == before


def test_a_failing_sample_restores_the_global_random_state():
    """Also when a sample raises in the middle of a batch."""

    class Failing(Ambient):
        def __getitem__(self, index):
            super().__getitem__(index)
            raise OSError("no such image")

    before = ambient_states()
    with pytest.raises(
        RuntimeError, match=r"sample 0 \(batch 0 of epoch 0\) could not .*OSError: no such image"
    ) as caught:
        list(Loader(Failing(3), 2, shuffle=False).epoch(KEY))
    assert isinstance(caught.value.__cause__, OSError)
    assert ambient_states() == before


def test_tensors_are_batched_as_their_samples_would_be():
    """The fast path over a TensorDataset gives what fetching and stacking sample by sample gives."""
    tensors = torch.randn(3, 5, 7).permute(2, 0, 1), torch.arange(7)
    fast = list(Loader(TensorDataset(*tensors), 3).epoch(KEY))

    def stack(samples):
        return [torch.stack(column) for column in zip(*samples, strict=True)]

    stacked = list(Loader(TensorDataset(*tensors), 3, collate=stack).epoch(KEY))
    assert tree.equal(fast, stacked)
    assert all(type(batch) is list and batch[0].is_contiguous() for batch in fast)


def test_batched_reading_is_used_where_samples_get_no_randomness():
    """``__getitems__`` reads a batch at once, but never where each sample is to be seeded."""

    class Batched(Numbers):
        calls = 0

        def __getitems__(self, indices):
            self.calls += 1
            return indices

    dataset = Batched(10)
    plain = list(Loader(dataset, 4, seed_globals=False).epoch(KEY))
    assert dataset.calls == 3
    assert tree.equal(list(Loader(dataset, 4).epoch(KEY)), plain)
    assert dataset.calls == 3


def test_opening_again_ends_the_feed_before():
    """One reader at a time: the earlier feed says what happened and what to do."""
    loader = Loader(Numbers(10), 2, seed_globals=False)
    first = loader.open(START, key=KEY, share=ALONE)
    next(first)
    second = loader.open(START, key=KEY, share=ALONE)
    with pytest.raises(RuntimeError, match=r"its loader was opened again.*loader\.replace\(\)"):
        next(first)
    next(second)
    loader.close()
    with pytest.raises(RuntimeError, match="this feed is closed"):
        next(second)
    assert len(read(loader, 2)) == 2


def test_a_feed_that_failed_does_not_go_on():
    """Going on would leave out what was lost; the loader itself can be opened again."""

    class Once(Numbers):
        failed = False

        def __getitem__(self, index):
            if index == 3 and not self.failed:
                self.failed = True
                raise ValueError("broken")
            return index

    loader = Loader(Once(10), 2, shuffle=False)
    feed = loader.open(START, key=KEY, share=ALONE)
    delivered = next(feed)
    with pytest.raises(RuntimeError, match=r"sample 3 \(batch 1 of epoch 0\) could not be read"):
        next(feed)
    with pytest.raises(RuntimeError, match="failed before"):
        next(feed)
    assert read(loader, 1, delivered.cursor)[0].items[0].tolist() == [2, 3]


def test_datasets_that_exit_are_errors_too():
    """sys.exit in a dataset names the sample like any other failure."""

    class Exiting(Numbers):
        def __getitem__(self, index):
            raise SystemExit(3)

    with pytest.raises(RuntimeError, match=r"sample 0 \(batch 0 of epoch 0\) could not be read"):
        list(Loader(Exiting(1), 1).epoch(KEY))


def test_samples_that_do_not_fit_together_name_the_remedy():
    """Ragged samples need a collate function."""

    class Ragged(Numbers):
        def __getitem__(self, index):
            return torch.zeros(index)

    with pytest.raises(RuntimeError, match=r"batch 0 of epoch 2 could not be made into a batch.*collate"):
        list(Loader(Ragged(4), 4).epoch(KEY, 2))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 9), count=st.integers(1, 50))
@settings(deadline=None, max_examples=40)
def test_take_limit_and_overfit(n, batch_size, count):
    """take(n): the first n samples. limit(k): the first k batches. overfit(k): the same k batches for ever."""
    loader = Loader(Numbers(n), batch_size, seed_globals=False)
    whole = [batch.tolist() for batch in loader.epoch(KEY)]
    taken = [i for batch in loader.take(count).epoch(KEY) for i in batch.tolist()]
    assert sorted(taken) == list(range(min(n, count)))
    assert [batch.tolist() for batch in loader.limit(count).epoch(KEY)] == whole[:count]
    few = loader.overfit(count)
    first, second = ([batch.tolist() for batch in few.epoch(KEY, epoch)] for epoch in (0, 1))
    assert first == second
    assert [i for batch in first for i in batch] == list(range(min(n, count * batch_size)))


def test_limits_may_be_fractions():
    """A fraction of the batches of an epoch, at least one."""
    loader = Loader(Numbers(100), 10)
    assert [len(loader.limit(share)) for share in (0.35, 0.01, 1.0, 1)] == [3, 1, 10, 1]


def test_describe_holds_what_decides_the_bytes():
    """Exactly that: how the work is done is not part of it."""
    loader = Loader(Numbers(10), 4)
    assert loader.describe() == {
        "kind": "map",
        "length": 10,
        "batch_size": 4,
        "order": "shuffled",
        "drop_last": False,
        "batches_per_epoch": 3,
    }
    assert loader.replace(workers=2, prefetch=5, pin_memory=True).describe() == loader.describe()
    changed = [loader.take(9), loader.limit(2), loader.overfit(1), loader.replace(drop_last=True)]
    assert all(other.describe() != loader.describe() for other in changed)
    assert "batch_size=4" in repr(loader)


def test_custom_orders_and_batches_decide_what_is_read():
    """A function of (key, epoch, n), or batches of any sizes."""
    backwards = Loader(Numbers(5), 2, order=lambda key, epoch, n: range(n - 1, -1, -1))
    assert [batch.tolist() for batch in backwards.epoch(KEY)] == [[4, 3], [2, 1], [0]]
    thrice = Loader(Numbers(5), 2, order=CustomOrder(lambda key, epoch, n: [epoch] * 3, samples=3))
    assert [batch.tolist() for batch in thrice.epoch(KEY, 4)] == [[4, 4], [4]]
    growing = Loader(Numbers(6), None, order=CustomBatches(lambda key, epoch, n: [[0], [1, 2], [3, 4, 5]], 3))
    assert [batch.tolist() for batch in growing.epoch(KEY)] == [[0], [1, 2], [3, 4, 5]]
    assert len(growing.limit(2)) == 2


def test_the_key_of_a_custom_order_is_its_epochs_own():
    """So a function that shuffles by the key shuffles differently in each epoch."""
    loader = Loader(Numbers(20), 20, order=lambda key, epoch, n: random.permutation(key, n))
    orders = {tuple(next(loader.epoch(KEY, epoch)).tolist()) for epoch in range(4)}
    assert len(orders) == 4


def test_a_loader_is_a_source_and_travels_as_its_arguments():
    """Copies read the same batches; workers and feeds stay behind."""
    loader = Loader(Numbers(7), 3)
    assert isinstance(loader, Source)
    feed = loader.open(START, key=KEY, share=ALONE)
    copied = pickle.loads(pickle.dumps(loader))
    assert tree.equal(list(copied.epoch(KEY)), list(loader.replace().epoch(KEY)))
    next(feed)


def test_a_feed_keeps_its_loader_alive():
    """A loader that nobody else holds is not closed under its feed."""
    feed = Loader(Numbers(7), 3).open(Cursor(), key=KEY, share=Share())
    assert len(next(feed).items[0]) == 3


class OnlyMany:
    def __len__(self):
        return 3

    def __getitems__(self, indices):
        return indices


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": Numbers(0)}, ValueError, "the dataset (Numbers) is empty"),
        ({"dataset": object()}, TypeError, "needs a dataset with __len__ and __getitem__, got object"),
        ({"dataset": {1, 2}}, TypeError, "set has no __getitem__"),
        ({"dataset": OnlyMany()}, TypeError, "seed_globals=False"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be an integer of at least 1, got 2.0"),
        ({"batch_size": None}, ValueError, "batch_size must be an integer"),
        ({"batch_size": 9, "drop_last": True}, ValueError, "not one batch in an epoch"),
        ({"shuffle": True, "order": Sequential()}, ValueError, "contradict each other"),
        ({"order": Shuffled}, TypeError, "order must be an Order or a function"),
        ({"order": 3}, TypeError, "order must be an Order or a function"),
        ({"order": CustomBatches(lambda *_: [[0]], 1)}, ValueError, "set batch_size=None"),
        ({"workers": -1}, ValueError, "workers must be an integer of at least 0, got -1"),
        ({"prefetch": 0}, ValueError, "prefetch must be an integer of at least 1"),
        ({"collate": 3}, TypeError, "collate must be a function, got 3"),
        ({"samples": 0}, ValueError, "samples must be an integer of at least 1"),
        ({"batches": 1.5}, ValueError, "a fraction in (0, 1], got 1.5"),
        ({"batches": True}, ValueError, "a fraction in (0, 1], got True"),
    ],
)
def test_arguments_are_checked_at_the_border(arguments, error, message):
    """What is wrong is said when the loader is made, with the argument and the value."""
    with pytest.raises(error, match=re.escape(message)):
        Loader(**{"dataset": Numbers(5), "batch_size": 2, **arguments})


def test_only_datasets_with_getitems_are_read_when_they_promise_no_draws():
    """As the message says."""
    assert next(Loader(OnlyMany(), 3, shuffle=False, seed_globals=False).epoch(KEY)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("cursor", [Cursor(batch=3), Cursor(batch=-1), Cursor(position=4)])
def test_a_cursor_of_another_loader_is_refused(cursor):
    """Instead of reading something else than what was meant."""
    with pytest.raises(ValueError, match="it belongs to another loader"):
        Loader(Numbers(5), 2).open(cursor, key=KEY, share=Share())


def test_loaders_are_not_iterated_bare():
    """There is no hidden epoch counter; the message names the way to read an epoch."""
    with pytest.raises(TypeError, match=r"loader\.epoch\(key, 0\)"):
        iter(Loader(Numbers(5), 2))


def test_a_loop_by_hand_needs_cursor_and_key_alone():
    """Without a share, a feed is that of one process and of iterations of one micro-batch."""
    loader = Loader(Numbers(10), batch_size=4)
    with contextlib.closing(loader.open(START, key=KEY)) as feed:
        short = [next(feed) for _ in range(5)]
    with contextlib.closing(loader.open(START, key=KEY, share=Share("iteration", 1, 0, 1))) as feed:
        full = [next(feed) for _ in range(5)]
    assert tree.digest(short) == tree.digest(full)
    assert all(each.count == len(each.items) == 1 for each in short)
    assert [each.cursor[1:3] for each in short] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
