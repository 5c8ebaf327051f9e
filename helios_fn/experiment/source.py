"""The table that an experiment is read from, and where each key of it was written."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ..registry import closest
from . import toml

Path = tuple[str, ...]
"""The keys that lead to a value from the top of the file; items of lists by their number."""

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?")
_ASSIGNMENT = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


class Source:
    """A parsed file with what was set over it.

    Args:
        text: the file's.
        name: what to call it in messages.
        overrides: dotted paths and their values, such as ``{"optimizer.lr": 1e-3}``.

    Raises:
        ValueError: the text is no TOML, or an override leads nowhere.
    """

    def __init__(self, text: str, name: str, overrides: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.table = toml.parse(text, name)
        self._lines = _lines(text)
        self._set = {_put(self.table, path, value): "the override of" for path, value in (overrides or {}).items()}

    def changed(self, text: str, overrides: Mapping[str, Any], by: str = "the override of") -> Source:
        """A source of another text, with places in this one's file; ``by`` says whence the overrides are."""
        found = Source(text, self.name, overrides)
        found._lines, found._set = self._lines, {**self._set, **dict.fromkeys(found._set, by)}
        return found

    def where(self, path: Path) -> str:
        """The place of a key, or of the nearest that holds it: ``file:line``, or its override."""
        for length in range(len(path), 0, -1):
            here = path[:length]
            if here in self._set:
                return f"{self._set[here]} {dotted(here)}"
            within = next((found for found in self._set if found[:length] == here), None)
            if here in self._lines:
                also = "" if within is None else f", with {self._set[within]} {dotted(within)}"
                return f"{self.name}:{self._lines[here]}{also}"
            if within is not None:
                return f"{self._set[within]} {dotted(within)}"
        return self.name

    def __contains__(self, path: Path) -> bool:
        return path in self._lines or path in self._set

    def fail(self, path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raise ValueError with the place of the key."""
        raise ValueError(f"{self.where(path)}: {problem}") from cause


def dotted(path: Path) -> str:
    """A path as people write it."""
    return ".".join(path)


def _put(table: dict[str, Any], dotted_path: str, value: Any) -> Path:
    """Set a value in nested tables and lists; tables that are missing are made."""
    path = tuple(_keys(dotted_path))
    if not path:
        raise ValueError(f"{dotted_path!r} names no key: write it with dots, such as optimizer.lr")
    node: Any = table
    for at, key in enumerate(path):
        last = at == len(path) - 1
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                what = f"{'.'.join(path[:at])} is a list of {len(node)}"
                raise ValueError(
                    f"the override of {dotted_path}: {what}, and {key!r} is none of its items 0 to {len(node) - 1}"
                )
            slot: Any = int(key)
        elif isinstance(node, dict):
            slot = key
            if not last and isinstance(node.get(key), str):
                node[key] = {"name": node[key]}  # a part by its name alone
            if not last:
                node.setdefault(key, {})
        else:
            raise ValueError(f"the override of {dotted_path}: {'.'.join(path[:at])} is {node!r}, and has no keys")
        if last:
            node[slot] = copy.deepcopy(value)
        node = node[slot]
    return path


def _keys(text: str) -> list[str]:
    return [next(group for group in found.groups() if group is not None) for found in _PART.finditer(text)]


def _lines(text: str) -> dict[Path, int]:
    """The line of each key that stands at the start of one: enough for messages, which can do without."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    section: Path = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header is not None:
            section = tuple(_keys(header[2]))
            if header[1] == "[[":
                index = counts.get(section, -1) + 1
                counts[section] = index
                found.setdefault(section, number)
                section = (*section, str(index))
            found.setdefault(section, number)
            continue
        assignment = _ASSIGNMENT.match(line)
        if assignment is not None:
            keys = tuple(_keys(assignment[1]))
            for length in range(1, len(keys) + 1):
                found.setdefault((*section, *keys[:length]), number)
    return found


def unknown_key(source: Source, path: Path, known: list[str]) -> NoReturn:
    """Raise the error about a key that does not exist, with the closest one and all that do."""
    *section, key = path
    owner = f"[{'.'.join(section)}]" if section else "an experiment"
    source.fail(path, f"{owner} has no key {key!r}{closest(key, known)} It has {', '.join(known)}")
