"""Hypothesis strategies for the laws; needs the extra ``helios-fn[testing]``.

from hypothesis import given
from helios_fn.testing import check_resume, strategies as hst

@given(hst.interruptions(iterations=12))
def test_resume(stops):
    check_resume(step, state, loader, cfg, stops=[stops])
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from ..config import Every, RunConfig
from ..types import UnitName
from .interrupt import KINDS, Kind, Stop


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
