"""The configuration: every mistake is an error before anything happens, and says what to do."""

from __future__ import annotations

import json
import math

import pytest

from helios_fn.config import EarlyStop, Every, RunConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "epochs"}, "unit must be one of 'iteration', 'epoch', got 'epochs'"),
        ({"total": 0}, "total must be an integer of at least 1"),
        ({"total": -3}, "total must be an integer of at least 1"),
        ({"total": 2.5}, "total must be an integer"),
        ({"root": ""}, "names no folder"),
        ({"root": 5}, "names no folder"),
        ({"resume": 5}, "resume=5 must be"),
        ({"resume": ""}, "must be 'auto'"),
        ({"total": math.nan}, "total must be an integer"),
        ({"accumulation_steps": 0}, "accumulation_steps must be"),
        ({"accumulation_steps": True}, "accumulation_steps must be"),
        ({"micro_batches": 0}, "micro_batches must be"),
        ({"micro_batches": 4, "accumulation_steps": 2}, "not both"),
        ({"log_every": 0}, "log_every must be an integer of at least 1"),
        ({"validate_every": -1}, "validate_every must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"checkpoint_every": 5}, "set root"),
        ({"unit": "epoch", "accumulation_steps": 2}, r"hf\.optim\.every\(2, optimizer\)"),
        ({"name": "../evil"}, "cannot name files"),
        ({"name": ""}, "cannot name files"),
        ({"name": "a/b"}, "cannot name files"),
        ({"non_finite": "ignore"}, "non_finite must be one of"),
        ({"non_finite": "rollback"}, "set root"),
        ({"reduction": "ring"}, "reduction must be one of"),
        ({"early_stop": EarlyStop("loss", 2)}, "set validate_every"),
        ({"purity_checks": -1}, "purity_checks"),
        ({"check_finite_every": 0}, "check_finite_every"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(changes, message):
    """Each wrong value is refused at construction."""
    with pytest.raises(ValueError, match=message):
        RunConfig(**{"unit": "iteration", "total": 10, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(0, "epoch"), "Every.n"),
        (lambda: Every(2, "hour"), "Every.unit"),
        (lambda: EarlyStop("loss", 0), "EarlyStop.cycles"),
        (lambda: EarlyStop("loss", 1, mode="down"), "EarlyStop.mode"),
        (lambda: EarlyStop("loss", 1, min_delta=-1.0), "min_delta"),
    ],
)
def test_a_mistake_in_a_part_is_named(make, message):
    """The same for cadences and early stop."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plain_cadence_counts_the_unit_of_the_run():
    """An int is short for an `Every` in the run's own unit."""
    cfg = RunConfig(unit="epoch", total=3, log_every=2, validate_every=Every(5, "iteration"))
    assert cfg.cadence("log_every") == Every(2, "epoch")
    assert cfg.cadence("validate_every") == Every(5, "iteration")
    assert cfg.cadence("checkpoint_every") is None


@pytest.mark.parametrize(
    ("stop", "best", "new", "better"),
    [
        (EarlyStop("m", 1), math.inf, 3.0, True),
        (EarlyStop("m", 1), 3.0, 3.0, False),
        (EarlyStop("m", 1, min_delta=0.5), 3.0, 2.6, False),
        (EarlyStop("m", 1, min_delta=0.5), 3.0, 2.4, True),
        (EarlyStop("m", 1, mode="max"), -math.inf, -9.0, True),
        (EarlyStop("m", 1, mode="max"), 1.0, math.nan, False),
        (EarlyStop("m", 1), 1.0, math.nan, False),
        (EarlyStop("m", 1, improved=lambda best, new: new == 7.0), 1.0, 7.0, True),
    ],
)
def test_what_counts_as_an_improvement(stop, best, new, better):
    """Smaller by more than min_delta, or larger, or whatever the user says; never NaN."""
    assert stop.is_improvement(best, new) is better


def test_the_description_is_plain_json():
    """The manifest of a checkpoint can hold any configuration."""
    stop = EarlyStop("loss", 2, improved=lambda best, new: True)
    cfg = RunConfig(unit="epoch", total=math.inf, validate_every=1, early_stop=stop, log_every=Every(3, "iteration"))
    described = json.loads(json.dumps(cfg.describe()))
    assert described["log_every"] == {"n": 3, "unit": "iteration"}
    assert described["early_stop"]["monitor"] == "loss"
