"""The table of features: each row names something that shows it, and all that is named exists."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from ..documents import ROOT

TEXT = (ROOT / "examples/guides/features.md").read_text()
ROWS = {int(number): shown for number, shown in re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", TEXT, flags=re.MULTILINE)}


@functools.cache
def functions_of(path: str) -> set[str]:
    found = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def test_all_features_are_there():
    """Forty-one of them, in order."""
    assert list(ROWS) == list(range(1, 42))


@pytest.mark.parametrize("number", ROWS)
def test_what_shows_a_feature_exists(number):
    """Each file, and in it each test."""
    named = re.findall(r"`([^`]+)`", ROWS[number])
    assert named
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not test or test in functions_of(path), name
