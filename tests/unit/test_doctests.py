"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("metrics.classes", "nn.functional", "nn.grad", "nn.precision", "optim.clip", "optim.loss_scale")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name):
    module = importlib.import_module(f"helios_fn.{name}")
    import helios_fn as hf

    names = {"torch": module.torch, **{key: getattr(hf.optim, key) for key in ("every", "adamw")}}
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted > 0
    assert found.failed == 0
