"""Curves of one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"
"""Levels from low to high; both are as wide."""
_GAP = {BLOCKS: "·", ASCII: "?"}


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """At most ``width`` characters for ``values``: each the mean of its part of them, between their least and greatest.

    Values that are not finite are left out; a part that has no others is a gap (``·``, or ``?`` in ASCII).

        >>> from helios_fn.cli.sparkline import sparkline
        >>> sparkline([1, 2, 3, 4, float("nan"), 8], 6)
        '▁▂▃▄·█'
    """
    count = min(width, len(values))
    parts = [values[at * len(values) // count : (at + 1) * len(values) // count] for at in range(count)]
    means = [_mean([value for value in part if math.isfinite(value)]) for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return _GAP[levels] * count
    low, high = min(known), max(known)
    # Halves, for the span of two finite floats may not be finite.
    span, top = high / 2 - low / 2, len(levels) - 1
    return "".join(
        _GAP[levels] if mean is None else levels[round((mean / 2 - low / 2) / span * top) if span > 0 else 0]
        for mean in means
    )


def levels_for(encoding: str | None) -> str:
    """The finest levels that an encoding has."""
    try:
        (BLOCKS + _GAP[BLOCKS]).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(value / len(values) for value in values) if values else None
