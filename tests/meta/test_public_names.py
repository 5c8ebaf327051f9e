"""Each public name is a decision: adding or removing one changes this table."""

from __future__ import annotations

import helios_fn as hf
from helios_fn import testing

MODULES = {
    "data", "distributed", "metrics", "observers", "optim", "random", "registry", "schedules", "sinks", "stopping",
    "tree",
}  # fmt: skip
NAMES = {
    "Aux", "Branch", "CheckpointError", "Counters", "Cursor", "EarlyStop", "Every", "Experiment", "Fingerprint",
    "LaunchFailed", "Loader", "MicroBatches", "NonFiniteError", "NotTraceable", "Observer", "PeerLost", "Phases",
    "PurityError", "Reason", "Result", "ResumeRefused", "Retention", "RootLocked", "Row", "RunConfig", "RunFailed",
    "RunInfo", "Sink", "StateDonated", "Stream", "Total", "TrainState", "Validation", "Validator", "all_stopped",
    "autocast", "branch", "compile", "dev_run", "ema", "ensemble", "evaluate_members", "find_learning_rate",
    "freeze", "functional", "grad", "guard_finite", "init_state", "iterate", "launch", "load_run", "make_step",
    "member", "micro_keys", "microsteps", "override", "predict", "predict_batches", "refresh_batch_norm", "restore",
    "run", "sam", "scaled_grad", "stack", "step_key", "summary", "swa", "test", "unfreeze", "unroll", "unstack",
    "value_and_grad",
}  # fmt: skip
TESTING = {
    "Crash", "Job", "JobFailed", "LawBroken", "LawDoesNotApply", "MemoryBill", "Pinned", "Stop", "Trace",
    "assert_same_run", "check_accumulation", "check_counting", "check_observation", "check_order", "check_resume",
    "check_resume_processes", "check_round_trip", "check_step", "check_validation", "check_workers", "check_world",
    "deterministic", "dry_run", "run_with",
}  # fmt: skip


def public(module) -> set[str]:
    import types

    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def test_the_public_names_are_the_listed_ones():
    """What `import helios_fn` offers is what a user needs, and no more."""
    assert public(hf) == NAMES
    assert all(hasattr(hf, module) for module in MODULES)


def test_the_testing_names_are_the_listed_ones():
    """The same for `helios_fn.testing`."""
    assert public(testing) == TESTING


def test_every_public_name_is_documented():
    """Each has a docstring that starts with a sentence."""
    for module, names in ((hf, NAMES), (testing, TESTING)):
        for name in names:
            assert (getattr(module, name).__doc__ or "").strip(), name
