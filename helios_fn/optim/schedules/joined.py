"""Schedules made of pieces: joined end to end, warm-up and decay, warm restarts."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ..checks import number, whole
from .base import Rate, Schedule, Value, double, rate_at, select
from .shapes import cosine, half_cosine, linear


def piecewise(boundaries: Sequence[int], values: Sequence[Rate]) -> Schedule:
    """``values[i]`` from ``boundaries[i - 1]`` (inclusive) to ``boundaries[i]`` (exclusive).

    A value is a number or another schedule; a schedule counts from the start of its piece. So the
    call joins schedules, as ``torch.optim.lr_scheduler.SequentialLR`` does; numbers alone give
    ``MultiStepLR``.

        piecewise([100], [linear_warmup(3e-4, 100), cosine(3e-4, 900)])

    Raises:
        ValueError: ``values`` has not exactly one entry more than ``boundaries``, or these do not increase.

    Example:
        >>> rate = hf.schedules.piecewise([2, 4], [hf.schedules.linear_warmup(1.0, 2), 1.0, 0.125])
        >>> [rate(count) for count in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.125, 0.125]
    """
    starts = [0, *(whole(f"boundaries[{i}]", boundary) for i, boundary in enumerate(boundaries))]
    if any(low >= high for low, high in itertools.pairwise(starts)):
        raise ValueError(f"boundaries must increase, got {list(boundaries)}")
    if len(values) != len(starts):
        raise ValueError(f"{len(boundaries)} boundaries separate {len(starts)} values, got {len(values)}")
    pieces = [piece if callable(piece) else number(f"values[{i}]", piece) for i, piece in enumerate(values)]

    def value(count: Any) -> Value:
        if isinstance(count, torch.Tensor):
            return _joined(starts, pieces, count)
        index = bisect.bisect_right(starts, count) - 1
        piece = pieces[index]
        return piece(count - starts[index]) if callable(piece) else piece

    return Schedule("piecewise", {"boundaries": starts[1:], "values": pieces}, value)


def warmup_cosine(
    peak: float, warmup_steps: int, total_steps: int, end: float = 0.0, *, start: float = 0.0
) -> Schedule:
    """A straight rise to ``peak`` at ``warmup_steps``, then half a cosine to ``end`` at ``total_steps``.

    The first update uses ``start``, or ``peak`` where there is no warm-up. From ``total_steps`` on the
    value is ``end``.

    Raises:
        ValueError: ``total_steps`` is not above ``warmup_steps``.

    Example:
        >>> rate = hf.schedules.warmup_cosine(1.0, warmup_steps=4, total_steps=8)
        >>> [rate(count) for count in (0, 1, 2, 4, 8, 9)]
        [0.0, 0.25, 0.5, 1.0, 0.0, 0.0]
    """
    peak, start, end = number("peak", peak), number("start", start), number("end", end)
    warmup_steps = whole("warmup_steps", warmup_steps, low=0)
    if whole("total_steps", total_steps) <= warmup_steps:
        raise ValueError(f"total_steps must be above warmup_steps, got {total_steps} and {warmup_steps}")
    decay = cosine(peak, total_steps - warmup_steps, end)
    rise = linear(start, peak, warmup_steps) if warmup_steps else decay

    def value(count: Any) -> Value:
        return select(count < warmup_steps, lambda: rise(count), lambda: decay(count - warmup_steps))

    arguments = {"peak": peak, "warmup_steps": warmup_steps, "total_steps": total_steps, "end": end, "start": start}
    return Schedule("warmup_cosine", arguments, value)


def cosine_restarts(peak: float, period: int, factor: int = 1, end: float = 0.0) -> Schedule:
    """Half cosines from ``peak`` towards ``end``, each ``factor`` times as long as the one before.

    Equals ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``: the first lasts ``period`` updates,
    and the next begins at ``peak`` where one would reach ``end``. This is SGDR, from
    [Loshchilov and Hutter](https://arxiv.org/abs/1608.03983).
    """
    peak, end = number("peak", peak), number("end", end)
    period, factor = whole("period", period), whole("factor", factor)

    def value(count: Any) -> Value:
        if factor == 1:
            return half_cosine(peak, end, count % period / period)
        since, length = _cycle(count, period, factor)
        return half_cosine(peak, end, since / length)

    return Schedule("cosine_restarts", {"peak": peak, "period": period, "factor": factor, "end": end}, value)


def _joined(starts: Sequence[int], pieces: Sequence[Rate], count: torch.Tensor) -> torch.Tensor:
    value = double(rate_at(pieces[0], count), count)
    for start, piece in zip(starts[1:], pieces[1:], strict=True):
        # Every piece is evaluated, also before its time: from 0 on, where it is defined.
        value = torch.where(count < start, value, rate_at(piece, (count - start).clamp(min=0)))
    return value


def _cycle(count: Any, period: int, factor: int) -> tuple[Any, Any]:
    """How far ``count`` is into its cycle, and how long that is; the cycles grow by ``factor``."""
    if not isinstance(count, torch.Tensor):
        while count >= period:
            count, period = count - period, period * factor
        return count, period
    starts, lengths = [0], [period]
    while starts[-1] < _EXACT:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * factor)
    # Both increase, so the last that was reached is the largest.
    table = torch.tensor([starts, lengths], dtype=torch.float64, device=count.device)
    start, length = torch.where(table[0] <= count, table, 0.0).amax(dim=1)
    return count - start, length


_EXACT = 2**53  # the integers that float64 holds
