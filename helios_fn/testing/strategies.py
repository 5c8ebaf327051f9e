"""Hypothesis strategies for the laws; needs the extra ``helios-fn[testing]``.

For most purposes the keyword ``examples`` of a law is all that is needed. These are for laws of your own::

    from hypothesis import given
    from helios_fn.testing import check_step, strategies as hst

    @given(hst.batches({"x": hst.Leaf(3), "y": hst.Leaf(dtype=torch.int64, below=2)}))
    def test_my_loss_is_below_ten_on_any_batch(batch):
        assert check_step(step, state, batch).metrics["loss"] < 10
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from .. import tree
from ..config import Every, RunConfig
from ..state import TrainState
from ..types import UnitName
from .interrupt import KINDS, Kind, Stop
from .trials import batches_told


def interruptions(iterations: int, *, most: int = 3, kinds: Sequence[Kind] = KINDS) -> st.SearchStrategy[list[Stop]]:
    """Up to ``most`` interruptions of a run of ``iterations``, in order; one place may be hit twice.

    Shrinks towards a single crash after the first iteration.
    """
    stop = st.builds(Stop, st.integers(1, max(1, iterations)), st.sampled_from(list(kinds)))
    return st.lists(stop, min_size=1, max_size=most).map(lambda found: sorted(found, key=lambda each: each.iteration))


def cadences(most: int = 4, *, units: Sequence[UnitName] = ("iteration", "epoch")) -> st.SearchStrategy[Every]:
    """Cadences of up to ``most`` units."""
    return st.builds(Every, st.integers(1, most), st.sampled_from(list(units)))


@st.composite
def run_configs(
    draw: st.DrawFn, *, max_total: int = 8, units: Sequence[UnitName] = ("iteration", "epoch")
) -> RunConfig:
    """Quiet configurations without a root: unit, total, accumulation, reduction and cadences vary."""
    unit = draw(st.sampled_from(list(units)))
    return RunConfig(
        unit=unit,
        total=draw(st.integers(1, max_total)),
        accumulation_steps=draw(st.integers(1, 3)) if unit == "iteration" else 1,
        reduction=draw(st.sampled_from(["tree", "fold"])),
        log_every=draw(cadences(units=units)),
        progress=False,
    )


class Leaf(NamedTuple):
    """What a leaf of a batch holds.

    Attributes:
        size: the length of a sample's last dimension; ``None`` for samples that are numbers.
        dtype: of the tensor.
        below: integers are at least 0 and less than this, such as the number of classes.
        within: floats are at most this far from 0; they are finite.
    """

    size: int | None = None
    dtype: torch.dtype = torch.float32
    below: int = 10
    within: float = 10.0


@st.composite
def batches(draw: st.DrawFn, spec: Any, *, min_size: int = 1, max_size: int = 8) -> Any:
    """Batches with the structure of ``spec``, a tree of `Leaf`; all leaves have one number of samples.

    Shrinks towards one sample of zeros.
    """
    samples = draw(st.integers(min_size, max_size))
    found, structure = tree.flatten(_boxed(spec))
    return tree.unflatten(structure, [draw(_tensors(box.leaf, samples)) for box in found])


def batches_like(batch: Any, *, fewest: int | None = None, most: int | None = None) -> st.SearchStrategy[Any]:
    """Batches made of the samples of another one: some of them, each once, in any order.

    In up to three places a number is changed: a float to any between the least and the greatest of its leaf, an integer
    (or a float, where all are whole) to another one of its leaf. So labels stay labels, and masks masks.
    Of `helios_fn.MicroBatches` each is made so. Shrinks towards the first samples as they are.

    Args:
        batch: its leaves are tensors and arrays of one length.
        fewest: samples; by default 2, and 1 where ``batch`` has no more.
        most: samples; by default as many as ``batch`` has.

    Raises:
        ValueError: its leaves are of no one length; names one.
    """
    return batches_told(batch, fewest, most).map(lambda told: told.batch)


class _Box:
    """Hides a `Leaf`, which is a tuple, from the tree that holds it."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf


def _boxed(spec: Any) -> Any:
    if isinstance(spec, Leaf):
        return _Box(spec)
    if isinstance(spec, dict):
        return {name: _boxed(child) for name, child in spec.items()}
    if isinstance(spec, list | tuple):
        children = [_boxed(child) for child in spec]
        return type(spec)(*children) if hasattr(spec, "_fields") else type(spec)(children)
    raise TypeError(f"a spec holds Leaf in dicts, lists and tuples, got {tree.describe(spec)}")


def _tensors(leaf: Leaf, samples: int) -> st.SearchStrategy[torch.Tensor]:
    shape = (samples,) if leaf.size is None else (samples, leaf.size)
    numbers: st.SearchStrategy[Any] = st.floats(-leaf.within, leaf.within, width=32)
    if leaf.dtype is torch.bool:
        numbers = st.booleans()
    elif not leaf.dtype.is_floating_point:
        numbers = st.integers(0, leaf.below - 1)
    count = math.prod(shape)
    return st.lists(numbers, min_size=count, max_size=count).map(
        lambda values: torch.tensor(values, dtype=leaf.dtype).reshape(shape)
    )


@st.composite
def states(draw: st.DrawFn, like: TrainState) -> TrainState:
    """States with the structure, shapes and dtypes of ``like``, and other values: those that are easily lost.

    NaN, infinities, zeros of both signs, denormals, integers beyond 2^53; leaves that are transposed, and leaves of
    one shape and dtype that share their memory. Key, cursor and counters are those of ``like``. Such a state is not
    meant to be trained. Shrinks towards ``like``.
    """
    parts = {name: getattr(like, name) for name in ("params", "buffers", "opt_state", "averages", "extra")}
    found, structure = tree.flatten(parts)
    leaves: list[Any] = []
    for leaf in found:
        shared = [other for other in leaves if _could_share(leaf, other)]
        share = bool(shared) and draw(st.integers(0, 7)) == 7
        leaves.append(draw(st.sampled_from(shared)) if share else draw(_others(leaf)))
    return like.replace(**tree.unflatten(structure, leaves))


_ODD_FLOATS = (0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 5e-324, 1.1, 3.4e38)
_ODD_INTEGERS = (0, 1, -1, 2**53 + 1, -(2**63), 2**63 - 1)


def _could_share(leaf: Any, other: Any) -> bool:
    both = isinstance(leaf, torch.Tensor) and isinstance(other, torch.Tensor)
    return both and leaf.shape == other.shape and leaf.dtype == other.dtype


@st.composite
def _others(draw: st.DrawFn, leaf: Any) -> Any:
    """Another value in place of a leaf: of a tensor one element, and perhaps its strides."""
    if isinstance(leaf, bool) or not isinstance(leaf, torch.Tensor | int | float):
        return leaf
    if isinstance(leaf, int):
        return draw(st.sampled_from((leaf, *_ODD_INTEGERS)))
    if isinstance(leaf, float):
        return draw(st.sampled_from((leaf, *_ODD_FLOATS)))
    if leaf.layout is not torch.strided or leaf.is_complex() or leaf.dtype is torch.bool or not leaf.numel():
        return leaf
    new = leaf.clone()
    if leaf.is_floating_point():
        value: float = draw(st.sampled_from((0.5, *_ODD_FLOATS)))
    else:
        limits = torch.iinfo(leaf.dtype)
        value = min(max(draw(st.sampled_from(_ODD_INTEGERS)), limits.min), limits.max)
    new.view(-1)[draw(st.integers(0, leaf.numel() - 1))] = value
    return new.t().contiguous().t() if leaf.dim() == 2 and draw(st.booleans()) else new
