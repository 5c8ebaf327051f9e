"""What the ranks of a pool do in the tests of runs. A module of its own, which they can import."""

from __future__ import annotations

import dataclasses
import os

import helios_fn as hf
from helios_fn.driver import agreement
from helios_fn.testing import Trace
from helios_fn.testing.trace import run_leg

from ..jobs import Case, build
from ..strategies import Leg


def rank() -> int:
    return int(os.environ["RANK"])


def attentive():
    """Have a signal heard after the next iteration; small iterations are else over before."""
    agreement.PAUSE = 0.0


def take_part(case: Case, leg: Leg, root: str, ambient: int) -> Trace:
    """One rank of one leg of the run of a case."""
    attentive()
    job = build(case).in_root(root)
    cfg = dataclasses.replace(job.cfg, collective_timeout=20.0, total=leg.total or job.cfg.total)
    stop = leg.stop
    if stop is not None and stop.kind in ("signal", "error") and rank() != leg.rank:
        stop = None
    trace = Trace()
    try:
        result = run_leg(dataclasses.replace(job, cfg=cfg), stop, ambient, trace)
    except hf.RunFailed as error:
        planned = leg.stop is not None and leg.stop.kind == "error" and f"rank {leg.rank} failed in" in str(error)
        if not planned or not isinstance(error.__cause__, hf.PeerLost):
            raise
        return trace
    return trace if result is None else trace.ended(result)
