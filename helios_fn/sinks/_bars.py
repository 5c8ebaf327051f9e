"""What progress looks like: pure functions from numbers to lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..types import RunInfo
from .names import TIME_SPLIT, loss_first

MAX_BAR, MIN_BAR = 40, 6
_LABEL = 10


class Glyphs(NamedTuple):
    """The characters of a bar."""

    full: str
    empty: str


BLOCKS, ASCII = Glyphs("█", "░"), Glyphs("#", "-")


class Snapshot(NamedTuple):
    """All that is shown at one moment.

    ``rate`` is in iterations per second, 0 while unknown; ``validating`` is the number of validation
    batches done and in total, ``None`` outside of a validation; ``observed`` is that of the last train row.
    """

    info: RunInfo
    iteration: int
    epoch: int
    batch: int
    rate: float = 0.0
    train: Mapping[str, float] = {}
    validation: Mapping[str, float] = {}
    validating: tuple[int, int | None] | None = None
    observed: Mapping[str, float] = {}


class Bar(NamedTuple):
    """One bar. ``total`` is ``None`` where there is none; ``fraction`` may be finer than ``done / total``."""

    label: str
    done: int
    total: int | None
    fraction: float
    tail: str = ""

    @property
    def amount(self) -> str:
        """How much of what, such as `` 37/100``: of constant width, lest everything behind it jump."""
        return f"{self.done}" if self.total is None else f"{self.done:>{len(str(self.total))}}/{self.total}"


def render(width: int, snapshot: Snapshot, glyphs: Glyphs = BLOCKS) -> list[str]:
    """The lines of a terminal that is ``width`` columns wide; none is longer."""
    bars = _bars(snapshot)
    steady = len(bars)
    shown = {"train": snapshot.train, "validation": snapshot.validation}
    if snapshot.validating is not None:
        bars.append(_bar("validation", *snapshot.validating))
        del shown["validation"]  # the bar takes the place of the last result
    lines = draw(width, bars, glyphs)
    values = [_fit(width, kind, _items(metrics)) for kind, metrics in shown.items() if metrics]
    pace = pace_of(snapshot.observed)
    if pace:
        values.insert(0, _fit(width, "speed", pace))
    return lines[:steady] + values + lines[steady:]


def render_plain(snapshot: Snapshot) -> str:
    """One line for files and pipes."""
    bars = _bars(snapshot)
    if snapshot.validating is not None:
        bars.append(_bar("validation", *snapshot.validating))
    parts = [f"{bar.label} {bar.amount.lstrip()}" for bar in bars]
    parts += [bar.tail.lstrip() for bar in bars if bar.tail]
    pace = pace_of(snapshot.observed)
    if pace:
        parts.append(f"speed: {', '.join(pace)}")
    for kind, metrics in (("train", snapshot.train), ("validation", snapshot.validation)):
        if metrics:
            parts.append(" ".join([f"{kind}:", *_items(metrics)]))
    return "  ".join(parts)


def draw(width: int, bars: list[Bar], glyphs: Glyphs) -> list[str]:
    """Bars under one another, aligned; in a narrow place the tails go first, then the bars themselves."""
    amounts = max(len(bar.amount) for bar in bars)
    tails = max(len(bar.tail) for bar in bars)
    fixed = _LABEL + 1 + amounts + 1 + 1 + len("100%")
    for tail in (tails + 2 if tails else 0, 0):
        room = min(MAX_BAR, width - fixed - tail)
        if room >= MIN_BAR:
            break
    lines = []
    for bar in bars:
        line = f"{bar.label:<{_LABEL}} {bar.amount:>{amounts}}"
        if room >= MIN_BAR and bar.total is not None:
            full = int(bar.fraction * room)
            line += f" {glyphs.full * full}{glyphs.empty * (room - full)} {int(bar.fraction * 100):>3}%"
        elif room >= MIN_BAR and len(bars) > 1:
            line += " " * (1 + room + 1 + len("100%"))
        if bar.tail and room >= MIN_BAR and tail:
            line += f"  {bar.tail}"
        lines.append(line.rstrip()[:width])
    return lines


def remaining(snapshot: Snapshot) -> float | None:
    """Iterations until the total is reached, ``None`` where nobody can know."""
    info = snapshot.info
    if not math.isfinite(info.total):
        return None
    if info.unit == "iteration":
        return max(0.0, info.total - snapshot.iteration)
    inside = iterations_per_epoch(info)
    if inside is None:
        return None
    return max(0.0, (info.total - snapshot.epoch) * inside - _iterations(snapshot.batch, info))


def iterations_per_epoch(info: RunInfo) -> int | None:
    """In the epoch unit the last iteration of an epoch takes the batches that are left."""
    return None if info.batches_per_epoch is None else _iterations(info.batches_per_epoch, info)


def duration(seconds: float) -> str:
    """Such as ``1:02:03`` or ``2d 3:04:05``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def speed(rate: float) -> str:
    """Iterations per second, or seconds per iteration where these are many."""
    if not rate > 0:
        return ""
    if rate < 1:
        return f"{1 / rate:.1f} s/it"
    return f"{rate:,.0f} it/s" if rate >= 99.95 else f"{rate:.1f} it/s"


def pace_of(observed: Mapping[str, float]) -> list[str]:
    """Throughput, the share of time in which training waited for data, and the most memory, as far as observed."""
    found = []
    if "samples_per_second" in observed:
        each = observed["samples_per_second"]
        found.append(f"{each:,.0f} samples/s" if each >= 99.95 else f"{each:.1f} samples/s")
    seconds = sum(observed.get(part, 0.0) for part in TIME_SPLIT)
    if seconds > 0:
        found.append(f"{100 * observed.get('data_wait', 0.0) / seconds:.0f}% waiting for data")
    if "peak_memory" in observed:
        size = observed["peak_memory"]
        found.append(f"peak memory {size / 1e9:.1f} GB" if size >= 999.5e6 else f"peak memory {size / 1e6:.0f} MB")
    return found


def _bars(snapshot: Snapshot) -> list[Bar]:
    info = snapshot.info
    rate = f"{speed(snapshot.rate):>9}" if snapshot.rate > 0 else ""
    total = int(info.total) if math.isfinite(info.total) else None
    left = remaining(snapshot)
    eta = f"{duration(left / snapshot.rate)} left" if left is not None and snapshot.rate > 0 else ""
    if info.unit == "iteration":
        return [_bar("iteration", snapshot.iteration, total, tail="  ".join(filter(None, (rate, eta))))]
    inside, done = iterations_per_epoch(info), _iterations(snapshot.batch, info)
    if total is not None and snapshot.epoch >= total and inside is not None:
        done = inside  # at the end the last epoch stands there full, not the one that will not come
    inner = _bar("iteration", done, inside, tail=rate)
    outer = _bar("epoch", snapshot.epoch, total, inner.fraction if snapshot.epoch < (total or 0) else 0.0, tail=eta)
    return [outer, inner]


def _bar(label: str, done: int, total: int | None, more: float = 0.0, tail: str = "") -> Bar:
    fraction = min(1.0, (done + more) / total) if total else 0.0
    return Bar(label, done, total, fraction, tail)


def _iterations(batches: int, info: RunInfo) -> int:
    return -(-batches // info.micro_batches)


def _items(metrics: Mapping[str, float]) -> list[str]:
    return [f"{_printable(name)} {value:.4g}" for name, value in loss_first(metrics)]


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)


def _fit(width: int, label: str, items: list[str]) -> str:
    """As many whole items as there is room for; the first is the last to go."""
    head = f"{label:<{_LABEL}} "
    lines = [head + "  ".join(items)]
    lines += [head + "  ".join([*items[:kept], "..."]) for kept in range(len(items) - 1, 0, -1)]
    lines += [head + items[0], f"{label} {items[0]}", items[0]]
    return next((line for line in lines if len(line) <= width), items[0][:width])
