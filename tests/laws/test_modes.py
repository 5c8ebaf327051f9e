"""The laws under every way to run a step: compile mode x donation x order of reduction.

The ordinary suite meets the pairs that differ in their graphs, by the compiler's front end alone; `make soak` every
combination, with real kernels.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest

import helios_fn as hf
from helios_fn.testing import Stop, check_resume
from helios_fn.testing.first import check_first_step

from ..jobs import Case, build

MODES = ("grad", "whole", "step")
# With the uncompiled modes, which Hypothesis draws in all other laws, these meet every pair of values but
# whole/auto and step/fold, whose graphs do not depend on the value.
PAIRS = [("grad", "auto", "fold"), ("whole", True, "fold"), ("step", True, "tree")]
PRODUCT = list(itertools.product(MODES, (True, "auto", False), ("tree", "fold")))
STOPS = [[Stop(1)], [Stop(3, "signal")], [Stop(4, "error"), Stop(5)]]


def case(compile, donate, reduction, backend, **changes) -> Case:
    made = Case(
        compile=compile,
        donate=donate,
        reduction=reduction,
        backend=backend,
        handwritten=compile == "step",
        dropout=True,
        batch_norm=True,
        schedule=True,
        ema=True,
        swa=compile == "whole",
        precision={"grad": "fp16", "whole": "bf16", "step": "fp16"}[compile],
        freeze=compile == "grad",
        accumulation=2,
        total=6,
        validate_every=hf.Every(2, "iteration"),
    )
    return dataclasses.replace(made, **changes)


def obeys_the_laws(made: Case) -> None:
    job = build(made)
    check_first_step(job)
    check_resume(job.step, job.state, job.loader, job.cfg, stops=STOPS, **job.keywords)


@pytest.mark.parametrize("mode", PAIRS, ids=str)
def test_a_compiled_step_is_pure_and_resumes_bit_for_bit(mode):
    """Where a graph takes five seconds there is one shape; `tests/unit/test_compile.py` has such steps with ragged
    tails."""
    changes = {} if mode[0] == "grad" else {"samples": 12}
    obeys_the_laws(case(*mode, backend="eager", **changes))


@pytest.mark.soak
@pytest.mark.parametrize("mode", PRODUCT, ids=str)
def test_real_kernels_are_pure_and_resume_bit_for_bit(mode):
    obeys_the_laws(case(*mode, backend="inductor"))
