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


RARE = {
    "checkpoint.partial", "cli", "data.stream", "driver.rates", "experiment", "forensics", "observers", "optim.native",
    "registry", "sinks.tensorboard", "testing",
}  # fmt: skip
MOST_MODULES = 185  # of the package, by `import helios_fn`


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


PACKAGE = Path(hf.__file__).parent
LATER = sorted(path for path in PACKAGE.rglob("__init__.py") if "import later" in path.read_text())
"""The packages of which some names are imported later."""


def declared_later(path: Path) -> tuple[set[tuple[str | None, str]], set[tuple[str | None, str]]]:
    """The (module, name) pairs that type checkers see, and those that ``__getattr__`` finds."""
    body = ast.parse(path.read_text()).body
    (choice,) = [node for node in body if isinstance(node, ast.If)]
    assert ast.unparse(choice.test) == "TYPE_CHECKING"
    seen = {(node.module, alias.asname) for node in choice.body for alias in node.names}
    call = choice.orelse[-1].value
    found = {(None, ast.literal_eval(module)) for module in call.args[1:]}
    names = ast.literal_eval(call.keywords[0].value)
    return seen, found | {(place, name) for place, held in names.items() for name in held.split()}


@pytest.mark.parametrize("path", LATER, ids=lambda path: path.parent.name)
def test_type_checkers_see_the_names_that_are_imported_later(path):
    """The names under ``if TYPE_CHECKING`` are those that ``__getattr__`` finds, in the same modules."""
    seen, found = declared_later(path)
    assert seen == found


@pytest.mark.parametrize("path", LATER, ids=lambda path: path.parent.name)
def test_no_name_that_is_imported_later_is_called_like_a_module(path):
    """Importing the module, by whatever way, would put it in the name's place."""
    taken = {each.stem for each in path.parent.iterdir()}
    assert not {name for module, name in declared_later(path)[1] if module is not None} & taken


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """The modules that ``import helios_fn`` adds to a process that has imported what all of it needs."""
    program = """
import sys, numpy.random, numpy.typing, optree, torch
before = set(sys.modules)
import helios_fn
print(*sys.modules.keys() - before)
"""
    return in_a_fresh_process(program).split()


def test_importing_the_package_imports_nothing_else(imported):
    """Beside torch, optree, NumPy and what these import, all else waits until it is used."""
    assert [name for name in imported if name.partition(".")[0] != "helios_fn"] == []


def test_importing_the_package_imports_few_of_its_modules(imported):
    """An import costs time and memory in every process, also in those that use little: each module counts."""
    assert not {"helios_fn." + name for name in RARE} & set(imported)
    assert len(imported) <= MOST_MODULES, "import later what many programs never use, or raise the number on purpose"


def test_names_that_are_imported_later_are_like_all_others():
    """In ``dir``, ``help``, ``from ... import`` and the star, by pickle, and from many threads at once."""
    program = """
import pickle, pydoc, sys, threading, types
import helios_fn as hf
later = {"Experiment", "Stream", "dev_run", "load_run", "observers", "registry", "restore", "schedules"}
assert later <= set(dir(hf)) and not later & set(vars(hf))

found, start = [], threading.Barrier(8)
def look():
    start.wait()
    found.append((hf.optim.adamw, hf.sinks.TensorBoard, hf.restore, hf.schedules))
threads = [threading.Thread(target=look) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [(hf.optim.adamw, hf.sinks.TensorBoard, hf.restore, hf.schedules)] * 8
assert "adamw" in vars(hf.optim) and hf.schedules is hf.optim.schedules

import helios_fn.optim._lion, helios_fn.metrics.classes
assert all(isinstance(each, types.FunctionType) for each in (hf.optim.lion, hf.metrics.top_k, hf.ensemble, hf.unroll))
assert pickle.loads(pickle.dumps(hf.optim.adamw)) is hf.optim.adamw

space = {}
exec("from helios_fn import *", space)
assert later | {"run", "make_step", "optim"} <= set(space) and space["load_run"] is hf.load_run
assert not {"TYPE_CHECKING", "annotations"} & set(space)
page = pydoc.render_doc(hf.optim, renderer=pydoc.plaintext)
assert "adamw(lr" in page and "clip_by_global_norm(max_norm" in page
"""
    in_a_fresh_process(program)


@pytest.mark.soak
def test_a_name_that_is_imported_later_may_first_be_used_in_a_compiled_function():
    """The compiler asks the package for it, as Python does: the graph is whole."""
    program = """
import torch
import helios_fn as hf
assert "global_norm" not in vars(hf.optim)
norm = torch.compile(lambda tree: hf.optim.global_norm(tree), backend="eager", fullgraph=True)
assert norm({"w": torch.ones(4)}) == 2
"""
    in_a_fresh_process(program)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """The message is Python's own, with its hint at a name that is close."""
    with pytest.raises(AttributeError, match=r"^module 'helios_fn' has no attribute 'lode_run'$") as caught:
        hf.lode_run  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("lode_run", hf)
    with pytest.raises(ImportError, match="lode_run"):
        from helios_fn import lode_run  # noqa: F401
