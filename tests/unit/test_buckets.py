"""What was packed comes back, whatever was asked before."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from helios_fn.distributed import buckets


@st.composite
def leaves(draw) -> torch.Tensor:
    """A tensor of up to three dimensions, whose elements may lie in memory in another order."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.int64]))
    order = draw(st.permutations(range(len(shape))))
    size = torch.Size([shape[at] for at in order])
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.arange(size.numel()).reshape(size).permute(back).to(dtype)


@given(lists=st.lists(st.lists(leaves(), max_size=4), min_size=1, max_size=4), in_memory_order=st.booleans())
def test_leaves_come_back_from_their_buckets(lists, in_memory_order):
    """Also in a later iteration, when the answer for these forms is known, and others were asked for in between."""
    for each in [*lists, *lists]:
        found = buckets.buckets(each, in_memory_order=in_memory_order, limit=32)
        again = buckets.spread(found, [bucket.flat(each) for bucket in found])
        for leaf, back in zip(each, again, strict=True):
            assert leaf.shape == back.shape
            assert leaf.dtype == back.dtype
            assert leaf.tolist() == back.tolist()


def test_forms_that_differ_in_memory_only_have_answers_of_their_own():
    """A transposed matrix is packed in another order than a plain one, if memory decides."""
    plain = torch.arange(6.0).reshape(2, 3)
    turned = plain.t().contiguous().t()
    first, second = (buckets.buckets([leaf], in_memory_order=True) for leaf in (plain, turned))
    assert first != second
    assert buckets.buckets([plain]) == buckets.buckets([turned])


def test_not_every_question_is_remembered_for_ever(monkeypatch):
    """A program that asks for new forms all the time does not grow."""
    monkeypatch.setattr(buckets, "_ANSWERS", {})
    for size in range(3 * buckets._MOST_ANSWERS):
        buckets.buckets([torch.zeros(size)])
    assert len(buckets._ANSWERS) <= buckets._MOST_ANSWERS
