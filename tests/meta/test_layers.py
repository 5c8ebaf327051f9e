"""The house: imports go down only, members of one layer do not know each other, files stay small."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "helios_fn"

# Each name is a module or a folder of the package; a folder's members may import each other.
LAYERS = [
    {"types", "errors", "tracing", "signature", "dtensors", "text", "frames", "branching", "later", "scalars"},
    {"tree", "random", "config", "accumulate", "finiteness", "graph", "patterns"},
    {"state", "schedule", "fingerprint", "overriding"},
    {"distributed"},
    {"nn", "optim", "data", "checkpoint", "sinks", "finite", "registry", "observers", "stopping", "summary", "metrics"},
    {"step", "compiled", "ensemble", "unroll"},
    {"driver"},
    {"experiment"},
    {"testing"},
    {"forensics"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """The modules or folders of the package that a file imports."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "helios_fn" and len(parts) > 1:
                    yield parts[1]
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(folder[: len(folder) - node.level + 1])
            parts = base + (node.module.split(".") if node.module else [])
            if node.level == 0:
                if parts[0] != "helios_fn":
                    continue
                parts = parts[1:]
            if parts:
                yield parts[0]
            else:
                yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path):
    """A module imports only from lower layers, or from its own folder."""
    me = owner(path)
    if me == "__init__":
        return
    assert me in LAYER_OF, f"{me} has no layer: add it to the table in {Path(__file__).name}"
    for other in imported(path):
        if other == me or other not in LAYER_OF:
            continue
        assert LAYER_OF[other] < LAYER_OF[me], (
            f"{path.relative_to(PACKAGE)} (layer {LAYER_OF[me]}) imports {other} (layer {LAYER_OF[other]}): "
            "move the shared part down, or hand the value over as an argument"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path: Path):
    """A function has at most 65 lines beside its docstring."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            length = node.end_lineno - body[0].lineno + 1
            assert length <= 65, f"{node.name} has {length} lines: split it by ideas"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_sprawls(path: Path):
    """A module has at most 350 lines: one idea each."""
    assert len(path.read_text().splitlines()) <= 350


def test_the_index_defines_nothing():
    """``__init__`` only imports, and every name it offers is meant to be there."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    (choice,) = [node for node in body if isinstance(node, ast.If)]
    assert ast.unparse(choice.test) == "TYPE_CHECKING"
    kinds = {type(node) for node in [*body[1:], *choice.body, *choice.orelse]}
    assert kinds <= {ast.ImportFrom, ast.Assign, ast.If}
