"""The generators of inputs for the laws. Every new feature is added here, and so meets every law."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import NamedTuple

from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.testing import Stop
from helios_fn.testing.strategies import cadences, interruptions

from .jobs import Case

# How many times as many examples: the nightly run looks further, see `make soak`.
SCALE = {"nightly": 20}.get(os.environ.get("HELIOS_FN_PROFILE", "ci"), 1)


def examples(number: int) -> int:
    """How many examples a law gets, from the number that the ordinary suite can afford."""
    return number * SCALE


@st.composite
def cases(draw, max_iterations: int = 8, sources=("loader", "dataloader", "stream", "phases")) -> Case:
    """Cases that are valid and end within ``max_iterations``, with faults likely where they hide:
    sample counts that no batch size divides, and totals beyond one epoch."""
    source = draw(st.sampled_from(sources))
    batch_size = draw(st.integers(1, 5))
    samples = draw(st.integers(batch_size, 13))
    drop_last = draw(st.booleans()) and source != "stream"
    unit = "iteration" if source == "stream" else draw(st.sampled_from(["iteration", "epoch"]))
    units = ("iteration",) if source == "stream" else ("iteration", "epoch")
    batches = samples // batch_size if drop_last else math.ceil(samples / batch_size)
    validate = draw(st.none() | cadences(units=units))
    micro_batches = draw(st.none() | st.integers(1, 3)) if unit == "epoch" else None
    per_epoch = math.ceil(batches / (micro_batches or 1))
    return Case(
        samples=samples,
        batch_size=batch_size,
        drop_last=drop_last,
        order=draw(st.sampled_from(["shuffled", "sequential"] + (["custom"] if source == "loader" else []))),
        source=source,
        augment=draw(st.sampled_from(["none", "torch", "random", "numpy", "generator"])),
        unit=unit,
        total=draw(st.integers(1, max_iterations if unit == "iteration" else max(1, max_iterations // per_epoch))),
        accumulation=draw(st.integers(1, 3)) if unit == "iteration" else 1,
        micro_batches=micro_batches,
        every=draw(st.integers(1, 3)),
        reduction=draw(st.sampled_from(["tree", "fold"])),
        optimizer=draw(st.sampled_from(["adamw", "sgd", "torch"])),
        handwritten=draw(st.booleans()),
        donate=draw(st.sampled_from(["auto", True, False])),
        dropout=draw(st.booleans()),
        batch_norm=draw(st.booleans()) and batch_size > 1 and (drop_last or samples % batch_size != 1),
        one_class_counts=draw(st.sampled_from([False, False, True])),
        schedule=draw(st.booleans()),
        ema=draw(st.booleans()),
        swa=draw(st.booleans()),
        precision=draw(st.sampled_from([None, "bf16", "fp16"])),
        freeze=draw(st.booleans()),
        log_every=draw(st.integers(1, 3)),
        fingerprint_every=draw(st.none() | st.integers(1, 3)),
        validate_every=validate,
        own_validation=draw(st.booleans()),
        sanity_batches=draw(st.sampled_from([0, 1, 9])) if validate is not None else 0,
        early_stop=draw(st.none() | st.integers(1, 3)) if validate is not None else None,
        checkpoint_every=draw(cadences(units=units)),
        async_save=draw(st.booleans()),
        seed=draw(st.integers(0, 2**64 - 1)),
        retention=draw(retentions(validate is not None)),
    )


class Leg(NamedTuple):
    """A part of a run: so many processes, until they are stopped.

    Attributes:
        processes: how many.
        stop: where and how they are; ``None`` for the last leg. A crash, and leaving, are all processes' alike.
        rank: the process to which a signal is sent, or that fails.
        total: stop because the total is reached, which the next leg then raises.
    """

    processes: int
    stop: Stop | None = None
    rank: int = 0
    total: int | None = None

    def __str__(self) -> str:
        if self.total is not None:
            return f"{self.processes} processes to a total of {self.total}"
        return f"{self.processes} processes" + ("" if self.stop is None else f", {self.stop} (rank {self.rank})")


@st.composite
def shared_cases(draw) -> Case:
    """Cases that any number of processes up to ``micro_batches`` can share with the same bits."""
    micro_batches = draw(st.integers(2, 6))
    case = draw(cases(max_iterations=6))
    # The last iteration of an epoch then often has fewer micro-batches than there are processes.
    return dataclasses.replace(case, micro_batches=micro_batches, accumulation=1, reduction="tree")


@st.composite
def courses(draw, case: Case, most_processes: int = 4) -> list[Leg]:
    """Elastic schedules: up to three legs, each with a number of processes of its own; the first has several."""
    stops = draw(st.just([]) | interruptions(6, most=2))
    fewest, legs = 2, []
    for stop in [*stops, None]:
        processes = draw(st.integers(fewest, min(case.micro_batches, most_processes)))
        total = None if stop is None else draw(st.none() | st.integers(1, case.total))
        legs.append(Leg(processes, None if total else stop, draw(st.integers(0, processes - 1)), total))
        fewest = 1
    return legs


def retentions(validated: bool) -> st.SearchStrategy[hf.Retention | None]:
    """Policies that remove something early, and none."""
    best = [hf.Retention(best=1, monitor="loss")] if validated else []
    return st.sampled_from([None, hf.Retention(last=1), hf.Retention(every=3), *best])
