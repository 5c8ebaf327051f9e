"""The reference of errors is complete, and quotes what the library says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from helios_fn import errors
from helios_fn.testing import verdicts

from ..documents import ROOT

TEXT = (ROOT / "examples/guides/errors.md").read_text()
HOLE = "\0"
TYPES = [
    cls
    for module in (errors, verdicts)
    for cls in vars(module).values()
    if inspect.isclass(cls) and cls.__module__ == module.__name__
]
SECTIONS = TEXT.partition("## Purity")[2]
QUOTED = re.findall(r"^\| `([^|]+)` \|", SECTIONS, flags=re.MULTILINE)


def texts_of(path: Path) -> set[str]:
    """All texts of a module, put together as Python does, with holes where values go."""
    found, docstrings = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):  # parents come first
        if isinstance(node, ast.Expr):
            docstrings.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
            found.add("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            found.add(node.value)
    return found


@pytest.fixture(scope="module")
def texts() -> set[str]:
    found = set().union(*(texts_of(path) for path in (ROOT / "helios_fn").rglob("*.py")))
    return {text for text in found if " " in text}


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_type_has_its_row(cls):
    """With the types that it is also a kind of."""
    row = re.search(rf"^\| `{cls.__name__}` \| ([\w, ]+) \|", TEXT, flags=re.MULTILINE)
    assert row
    assert row[1].split(", ") == [base.__name__ for base in cls.__bases__]


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_message_is_one_of_the_librarys(quoted, texts):
    """What is quoted stands in one text of the source; ``...`` is a value, or what is left out."""
    pattern = ".*?".join(re.escape(piece) for piece in quoted.split("..."))
    assert any(re.search(pattern, text, flags=re.DOTALL) for text in texts)


def test_the_most_common_messages_are_there():
    """A page that helps has more than a handful."""
    assert len(QUOTED) > 60
