"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

_NOT_OURS = {"TYPE_CHECKING", "annotations"}


def later(
    package: str, *modules: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, parts of which most programs never use.

    Type checkers see such names by imports under ``if TYPE_CHECKING``, people by ``dir`` and ``help``, and
    ``from package import *`` imports them too. A name is looked up once: it stands in the package from then on, as if
    it had been imported at the top. From several threads at once, all get the same object.

    Args:
        package: the package's ``__name__``.
        modules: submodules that are names themselves.
        names: the names to import, by the submodule in which they are found, with blanks between them. None of them
            may be called like a submodule of the package: importing that one would put it in the name's place.
    """
    owner = sys.modules[package]
    place = {name: module for module, held in names.items() for name in held.split()}

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in place:
            value = getattr(importlib.import_module(f"{package}.{place[name]}"), name)
            setattr(owner, name, value)
            return value
        if name == "__all__":  # asked for by help and by the star, which would pass over what is not there yet
            return [name for name in listed() if not name.startswith("_") and name not in _NOT_OURS]
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=owner)

    def listed() -> list[str]:
        return sorted({*vars(owner), *modules, *place})

    return find, listed
