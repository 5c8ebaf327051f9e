"""Each public name is a decision: adding or removing one changes this table."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

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


HEAVY = (
    "hypothesis", "matplotlib", "sklearn", "tensorboard", "torch._dynamo", "torch.distributed.checkpoint",
    "torch.profiler", "torch.utils.tensorboard",
)  # fmt: skip
RARE = ("experiment", "forensics", "observers", "registry", "testing", "cli", "driver.rates")


def public(module) -> set[str]:
    return {
        name
        for name in dir(module)
        if not name.startswith("_") and not isinstance(getattr(module, name), types.ModuleType)
    } - {"TYPE_CHECKING"}


def in_a_fresh_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_type_checkers_see_the_names_that_are_imported_later():
    """The names under ``if TYPE_CHECKING`` are those that ``__getattr__`` finds, in the same modules."""
    body = ast.parse(Path(hf.__file__).read_text()).body
    (choice,) = [node for node in body if isinstance(node, ast.If)]
    seen = {(node.module, alias.asname) for node in choice.body for alias in node.names}
    call = choice.orelse[-1].value
    found = {(None, ast.literal_eval(module)) for module in call.args[1:]}
    found |= {(place, name) for place, names in ast.literal_eval(call.keywords[0].value).items() for name in names}
    assert seen == found


def test_importing_the_package_imports_nothing_heavy_or_rare():
    """What torch itself has not imported already, and the parts of this package that many programs never use."""
    program = f"""
import sys, torch, optree
before = set(sys.modules)
import helios_fn as hf
new = set(sys.modules) - before
print(*[name for name in {HEAVY!r} if name in new])
print(*[name for name in {RARE!r} if "helios_fn." + name in new])
assert {{"Experiment", "find_learning_rate", "load_run", "observers", "registry", "run"}} <= set(dir(hf))
from helios_fn import Experiment, load_run, observers
assert hf.Experiment is Experiment and hf.load_run is load_run and hf.observers is observers
from helios_fn.experiment import run_members
assert callable(hf.ensemble) and callable(hf.summary) and callable(hf.unroll)
"""
    assert in_a_fresh_process(program).split() == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """The message is Python's own, with its hint at a name that is close."""
    with pytest.raises(AttributeError, match=r"^module 'helios_fn' has no attribute 'lode_run'$") as caught:
        hf.lode_run  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("lode_run", hf)
    with pytest.raises(ImportError, match="lode_run"):
        from helios_fn import lode_run  # noqa: F401
