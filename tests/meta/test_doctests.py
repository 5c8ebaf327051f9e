"""The docstrings are the reference, and their examples are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import helios_fn as hf

FINDER = doctest.DocTestFinder(exclude_empty=True)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> list[str]:
    """The modules whose source holds an example."""
    found = pkgutil.walk_packages(hf.__path__, "helios_fn.")
    specs = [importlib.util.find_spec(info.name) for info in found if not info.name.endswith("__main__")]
    return [s.name for s in [*specs, hf.__spec__] if ">>> " in Path(s.origin).read_text()]


def examples_of(name: str) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples. They may use ``hf`` and ``torch``, as users write them."""
    module = importlib.import_module(name)
    names = {"hf": hf, "torch": torch, "__name__": "__main__"}
    return [test for test in FINDER.find(module, name, globs=names) if test.examples]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_give_what_they_say(name, tmp_path, monkeypatch):
    """Each docstring by itself, with nothing but ``hf`` and ``torch`` at hand."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for test in examples_of(name):
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    assert not said, "".join(said)


def test_what_a_newcomer_meets_has_an_example():
    """The names whose use an example tells faster than a sentence."""
    shown = {test.name.removeprefix("helios_fn.") for name in modules() for test in examples_of(name)}
    assert len(shown) >= 35
