"""Datasets of tensors are read a batch at a time, and nobody can tell from the bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from helios_fn import random, tree
from helios_fn.data import Loader
from helios_fn.data.columns import Table, select_from

KEY = random.key(6691)


class OneByOne:
    """Another dataset behind a class that nothing is known about."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
LAYOUTS = {
    "plain": lambda t: t,
    "transposed": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1) if t.ndim > 2 else t,
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@st.composite
def columns(draw, n, least=1):
    shape = (n, *draw(st.lists(st.integers(0, 3), min_size=least - 1, max_size=3)))
    values = torch.arange(np.prod(shape)).reshape(shape).to(draw(st.sampled_from(DTYPES)))
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](values)


@st.composite
def datasets(draw):
    n = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["TensorDataset", "Tensor", "ndarray", "dict", "Subset"]))
    if kind == "Tensor":
        return draw(columns(n))
    if kind == "ndarray":
        return draw(columns(n, least=2).filter(lambda t: t.dtype is not torch.bfloat16)).numpy()
    found = draw(st.lists(columns(n), min_size=1, max_size=3))
    if kind == "dict":
        return {f"column {at}": each for at, each in enumerate(found)}
    if kind == "TensorDataset":
        return TensorDataset(*found)
    outer = draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=9))
    inner = draw(st.lists(st.integers(0, len(outer) - 1), min_size=1, max_size=9))
    return Subset(Subset(TensorDataset(*found), np.array(outer)), inner)


def looks(batch):
    """All that can be told of a batch: its structure, and of each tensor the strides too."""
    return tree.structure(batch), [(type(x), x.dtype, x.shape, x.stride(), x.tolist()) for x in tree.leaves(batch)]


@given(dataset=datasets(), batch_size=st.integers(1, 5), epoch=st.integers(0, 2))
@settings(deadline=None, max_examples=150)
def test_selecting_rows_gives_what_collating_samples_gives(dataset, batch_size, epoch):
    """Fast path bytes are slow path bytes, whatever the kind, dtype, shape and layout of the tensors."""
    fast = Loader(dataset, batch_size)
    as_dataset = Table(dataset) if isinstance(dataset, dict) else dataset
    assert select_from(as_dataset) is not None
    slow = Loader(OneByOne(as_dataset), batch_size, seed_globals=False)
    read = [[looks(batch) for batch in loader.epoch(KEY, epoch)] for loader in (fast, slow)]
    assert read[0] == read[1]


def test_selected_batches_share_no_memory_with_the_dataset():
    """A batch may be changed in place."""
    values = torch.arange(6.0).reshape(6, 1)
    for batch in Loader(values, 2).epoch(KEY):
        batch.zero_()
    assert values.sum() == 15


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * column for column in super().__getitem__(index))


@pytest.mark.parametrize(
    "dataset",
    [
        Doubled(torch.ones(3)),
        Subset(Doubled(torch.ones(3)), [0]),
        np.arange(3),
        np.array([["a", "b"]]),
        np.arange(6, dtype=">i4").reshape(3, 2),
        np.broadcast_to(np.arange(3), (3, 3)),
        [torch.ones(2)],
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_what_is_not_known_to_be_plain_columns_is_read_sample_by_sample(dataset):
    """Subclasses, and arrays whose memory torch cannot share."""
    assert select_from(dataset) is None


def test_a_transform_sees_the_samples_of_a_table():
    """Each is a dict of rows; a collate function gets a list of them."""
    data = {"x": torch.arange(4.0), "y": np.arange(4)}
    (batch,) = Loader(data, 4, shuffle=False, transform=lambda sample, rng: sample["x"] + sample["y"]).epoch(KEY)
    assert batch.tolist() == [0, 2, 4, 6]
    (batch,) = Loader(data, 4, shuffle=False, collate=lambda samples: [int(s["y"]) for s in samples]).epoch(KEY)
    assert batch == [0, 1, 2, 3]


def test_a_dict_of_samples_by_index_is_no_table():
    """It has no names."""
    assert next(Loader({0: 5, 1: 6}, 2, shuffle=False).epoch(KEY)).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"x": torch.ones(2), "y": torch.ones(3)}, ValueError, "equal length, got {'x': 2, 'y': 3}"),
        ({"x": [1, 2]}, TypeError, "the column 'x' must be a tensor or a numeric array .* got list"),
        ({"x": torch.tensor(1)}, TypeError, "the column 'x' must be"),
        ({"x": np.array(["a"])}, TypeError, "the column 'x' must be"),
        ({"x": torch.ones(2), 1: torch.ones(2)}, TypeError, "strings as names, got 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(data, error, message):
    """When the loader is made, with the column's name."""
    with pytest.raises(error, match=message):
        Loader(data, 1)


def test_an_index_outside_of_the_tensors_is_an_error_of_the_batch():
    """As for any other sample that cannot be read."""
    with pytest.raises(RuntimeError, match=r"the samples \[1\] \(batch 1 of epoch 0\) could not be read \(IndexError"):
        list(Loader(Subset(TensorDataset(torch.ones(3)), [0, 7]), 1, shuffle=False).epoch(KEY))


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, np.array], ids=lambda make: make.__name__)
def test_known_datasets_are_not_seeded_and_collate_functions_are(make):
    """What a collate function draws is the same for a dataset of which nothing is known."""

    def mix(samples):
        return torch.stack([torch.as_tensor(sample) for sample in samples]) + torch.rand(())

    known = make([[1.0], [2.0], [3.0], [4.0]])
    before = random.ambient_fingerprint()
    found, expected = (list(Loader(data, 2, collate=mix).epoch(KEY)) for data in (known, OneByOne(known)))
    assert tree.equal(found, expected)
    assert random.drawn(before, random.ambient_fingerprint()) == []
