"""No code and no class ever comes out of a checkpoint: not in the source, and not when it is tried."""

from __future__ import annotations

import ast
import builtins
import contextlib
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import helios_fn
from helios_fn.checkpoint import verify
from helios_fn.errors import CheckpointError

from .bounds import bounded
from .hostile import FILES
from .scenes import newest_value, open_store, save
from .tally import Finding, Outcome, Trial

PACKAGE = Path(helios_fn.__file__).parent

# What makes code or objects out of bytes or names. Patterns match the full dotted name.
DANGEROUS = re.compile(
    r"(c?pickle|_pickle|dill|cloudpickle|marshal|shelve|joblib|copyreg|runpy|imp|code|codeop|pkgutil)(\..*)?"
    r"|importlib\.(import_module|reload|util|machinery)(\..*)?"
    r"|multiprocessing\.reduction\..*"
    r"|torch\.(load|save|package|hub|serialization|jit\.load|export\.load|utils\.model_zoo)(\..*)?"
    r"|numpy\.(load|lib\.format|lib\.npyio|fromregex)(\..*)?"
    r"|pandas\.read_pickle|yaml\.(load|unsafe_load|full_load).*"
    r"|builtins\.(eval|exec|compile|__import__)"
)
# Keywords of calls that allow it.
ALLOWING = {"allow_pickle", "weights_only", "trust_remote_code"}

ALLOWED = {
    ("data/shared.py", "multiprocessing.reduction.ForkingPickler"): (
        "asks, before a batch leaves a worker, whether the queue between processes of one run can send it; "
        "nothing is read from a file"
    ),
    ("distributed/launch.py", "pickle"): "a function and its arguments, on their way to processes that this one starts",
    ("distributed/_child.py", "pickle"): "the same, where they arrive; through pipes that nobody else holds",
    ("distributed/_watch.py", "pickle"): "the values that those processes return",
    ("later.py", "importlib.import_module"): "a module of this package, by the table in its __init__",
    ("registry/base.py", "importlib.import_module"): "a module of this package, by the table in registry/kinds.py",
    ("registry/discovery.py", "importlib.import_module"): "what the caller names; load_run asks before it does so",
    ("registry/discovery.py", "pkgutil"): "the names of the modules in it",
    ("testing/spec.py", "importlib.import_module"): "the module that the user names on the command line",
}


def aliases(module: ast.Module) -> dict[str, str]:
    """What the names that a module binds by imports mean; names that it binds otherwise mean nothing here."""
    found: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{'.' * node.level}{node.module or ''}.{alias.name}"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, f".{node.name}")
        elif isinstance(node, ast.arg):
            found.setdefault(node.arg, f".{node.arg}")
    return found


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    """The full name of ``a.b.c``, as far as imports tell."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, known)
        return None if before is None else f"{before}.{node.attr}"
    if isinstance(node, ast.Name):
        builtin = f"builtins.{node.id}" if hasattr(builtins, node.id) else None
        return known.get(node.id, builtin)
    return None


def uses(path: Path) -> Iterator[tuple[str, int]]:
    """Everything dangerous in a file, with its line."""
    module = ast.parse(path.read_text())
    known = aliases(module)
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute | ast.Name):
            names = [dotted(node, known) or ""]
        elif isinstance(node, ast.keyword):
            names = [node.arg] if node.arg in ALLOWING else []
            yield from ((name, node.value.lineno) for name in names)
            continue
        yield from ((name, node.lineno) for name in names if DANGEROUS.fullmatch(name))


def test_no_module_makes_code_or_objects_from_bytes() -> None:
    """No unpickling, no evaluation, no import by name, but for what is listed with its reason."""
    used = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        for name, line in uses(path):
            reasons = {place for place in ALLOWED if place[0] == file and f"{name}.".startswith(f"{place[1]}.")}
            assert reasons, f"{file}:{line} uses {name}: find another way, or list it with a reason"
            used |= reasons
    assert used == set(ALLOWED), "an exception that nobody needs any longer"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads as innocent",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "f(weights_only=False)",
        "eval('1')",
        "from importlib import import_module",
        "import importlib.util as u\nu.spec_from_file_location('a', 'b')",
        "__import__('os')",
        "from torch.serialization import load",
    ],
)
def test_the_search_finds_what_it_is_for(tmp_path: Path, text: str) -> None:
    """Also under another name."""
    path = tmp_path / "module.py"
    path.write_text(text)
    assert list(uses(path))


@pytest.mark.parametrize("text", ["model.eval()", "import re\nre.compile('a')", "def compile(): ...\ncompile()"])
def test_the_search_finds_nothing_else(tmp_path: Path, text: str) -> None:
    """Methods and functions of the same name are harmless."""
    path = tmp_path / "module.py"
    path.write_text(text)
    assert not list(uses(path))


class Bomb:
    """Unpickled, it touches a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.target,)


def plant(folder: Path, marker: Path, replaced: str | None) -> None:
    """Files that Python, torch or NumPy would run, one of them in the place of the checkpoint's own."""
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    for name in ("__init__.py", "__main__.py", "sitecustomize.py", "conftest.py", "torch.py", "x.pth", "setup.py"):
        (folder / name).write_text(code)
    for name in ("state.json.pkl", "data.pkl", "model.pt", "array.npy", ".metadata", *([replaced] if replaced else [])):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))


RUNS_CODE = (
    "pickle.find_class",
    "marshal.loads",
    "exec",
    "compile",
    "import",
    "os.system",
    "subprocess.Popen",
    "ctypes.",
)


@pytest.mark.parametrize("replaced", [None, *FILES])
def test_a_malicious_file_does_nothing(memory: Path, replaced: str | None) -> None:
    """Python's own audit sees no code, no import and no unpickled class while the folder is read."""
    root, marker = memory / "root", memory / "marker"
    store = open_store(root)
    save(store, 1)
    folder = save(store, 2)
    events: list[str] = []

    def work() -> tuple[float | None, list[str]]:
        newest_value(open_store(memory / "warm"))  # what is imported at first use is imported here
        save(open_store(memory / "warm"), 1)
        newest_value(open_store(memory / "warm"))
        plant(folder, marker, replaced)
        plant(root, marker, None)
        os.chdir(folder)
        sys.addaudithook(lambda event, _: events.append(event) if event.startswith(RUNS_CODE) else None)
        with contextlib.suppress(CheckpointError):
            verify(folder)
        with store.lock():
            value = newest_value(store)
        return value, list(events)

    with Trial("malicious file", Outcome.REJECTED if replaced else Outcome.UNHARMED):
        value, seen = bounded(work)
        if seen or marker.exists():
            raise Finding(Outcome.CORRUPT, f"code ran: {seen}")
        assert value == (1 if replaced else 2)


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    """Where somebody unpickles it."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()
