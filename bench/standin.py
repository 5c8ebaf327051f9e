"""A stand-in for torchvision, where it is missing or was built for another torch.

Helios and torchmetrics (which Lightning brings) import it, and nothing that is measured here uses it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

NAME = "torchvision"


def torchvision() -> str:
    """Make ``import torchvision`` work. Returns what was done, in words; nothing where the real one works."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder())
        return f"torchvision is an empty stand-in for all peers: the real one does not load ({error})."
    return ""


class _Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an `_Empty` for torchvision and whatever is imported from it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """One for every name of torchvision."""
        known = name.partition(".")[0] == NAME
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """An empty one."""
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""
