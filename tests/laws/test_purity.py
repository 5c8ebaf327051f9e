"""Law 2: a step twice on the same input gives the same bits and leaves the input untouched."""

from __future__ import annotations

from hypothesis import given, settings

import helios_fn as hf
from helios_fn import tree
from helios_fn.testing import check_step
from helios_fn.testing.first import check_first_step

from ..jobs import Case, build
from ..strategies import cases, examples


@settings(max_examples=examples(60))
@given(cases())
def test_a_step_is_a_pure_function_of_state_and_batch(case: Case):
    """Whatever the case, two calls agree bit for bit and nothing is written to."""
    check_first_step(build(case))


@settings(max_examples=examples(15))
@given(cases(sources=("loader",)))
def test_a_whole_run_never_writes_to_the_state_it_was_given(case: Case):
    """``init_state`` is untouched by a run, so it can start another one."""
    job = build(case)
    before = tree.digest(job.state)
    cfg = hf.RunConfig(unit=case.unit, total=case.total, accumulation_steps=case.accumulation, progress=False)
    hf.run(job.step, job.state, job.loader(), cfg)
    assert tree.digest(job.state) == before


def test_check_step_gives_the_next_state():
    """The helper hands back what the step returned, for further checks of the user's own."""
    import torch

    params = {"w": torch.ones(2)}
    optimizer = hf.optim.sgd(0.5)
    step = hf.make_step(lambda params, buffers, batch, key: (params["w"] * batch).sum(), optimizer)
    after = check_step(step, hf.init_state(params, optimizer), torch.tensor([1.0, 2.0]))
    assert after.params["w"].tolist() == [0.5, 0.0]
