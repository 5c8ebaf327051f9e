"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def later(
    package: str, *modules: str, names: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, parts of which most programs never use.

    Type checkers see such names by imports under ``if TYPE_CHECKING``, people by ``dir``. A name is looked up once:
    it stands in the package from then on, as if it had been imported at the top.

    Args:
        package: the package's ``__name__``.
        modules: submodules that are names themselves.
        names: the names to import, by the submodule that defines them. None of them may be called like a
            submodule: importing that one would put it in the name's place.
    """
    owner = sys.modules[package]
    place = {name: module for module, held in names.items() for name in held}

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in place:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=owner)
        value = getattr(importlib.import_module(f"{package}.{place[name]}"), name)
        setattr(owner, name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(owner), *modules, *place})

    return find, listed
