"""Importing packages so that what they register is registered."""

from __future__ import annotations

import importlib
import pkgutil
import re
import traceback
from collections.abc import Iterable, Iterator

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def discover(*packages: str) -> tuple[str, ...]:
    """Import each package and all modules in it, in the order of their names; return the names.

    Modules called ``__main__`` are programs, and are left alone. A plain module may be given as well. What is
    imported already is not run again.

    Raises:
        ImportError: a module cannot be imported; the message names it, what it raised, and its line.
        ValueError: a name is not a module's.
    """
    check_names(packages)
    return tuple(name for package in packages for name in _imported(package, package))


def check_names(packages: Iterable[str]) -> None:
    """Check that these are dotted names of modules; raises ValueError or TypeError."""
    if isinstance(packages, str):
        raise TypeError(f"give a list of packages, [{packages!r}]")
    for name in packages:
        if not isinstance(name, str) or not _DOTTED.fullmatch(name):
            raise ValueError(
                f"{name!r} is not the name of a package: write it as in an import, such as my_project.nets"
            )


def _imported(name: str, package: str) -> Iterator[str]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ImportError(_message(name, package, error), name=name) from error
    yield name
    path = getattr(module, "__path__", None)
    if path is None:
        return
    for found in sorted(pkgutil.iter_modules(path), key=lambda found: found.name):
        if found.name != "__main__":
            yield from _imported(f"{name}.{found.name}", package)


def _message(name: str, package: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{name}.".startswith(f"{error.name}."):
        return (
            f"there is no package {name!r} to discover: install it, or start from the folder that it is in "
            "(Python looks there, and in PYTHONPATH)"
        )
    within = "" if name == package else f" (found by discover({package!r}))"
    return f"{name} cannot be imported{within}: {type(error).__name__}: {error}{_line(error)}"


def _line(error: BaseException) -> str:
    """Where the user's own code raised it."""
    if isinstance(error, SyntaxError):
        return ""  # which says so itself
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f", in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
