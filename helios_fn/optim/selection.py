"""Choosing leaves of a tree by their names.

The name of a leaf is its path with dots: dict keys, field names and positions from the root down, such as
``layers.0.weight``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optree
import torch

from .. import tree
from ..types import Tree
from .text import brief, stable

Patterns: TypeAlias = str | Sequence[str] | Callable[[str], bool]
"""One shell pattern, several, or a function of the name."""

_BRACKETS = re.compile(r"""\[(?:'([^']*)'|"([^"]*)"|([^]]*))\]""")


class Selection:
    """The leaves that ``patterns`` choose.

    A pattern is a shell pattern over the whole name (``"*.bias"``, ``"head.*"``, ``"layers.[01].*"``; ``*`` matches
    dots too). A name is chosen if a pattern matches it and none that begins with ``!`` does; where all begin with
    ``!``, every other name is chosen.

    Raises:
        TypeError: ``patterns`` is none of the three kinds.
        ValueError: there are no patterns.
    """

    __slots__ = ("_excluded", "_included", "_mask", "_treespec", "patterns")

    def __init__(self, what: str, patterns: Any) -> None:
        if isinstance(patterns, str):
            patterns = (patterns,)
        if not callable(patterns):
            if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
                raise TypeError(
                    f"{what} must be a pattern such as '*.bias', a list of them, or a function of a parameter's name, "
                    f"got {brief(patterns)}"
                )
            if not patterns:
                raise ValueError(f"{what} is empty and chooses nothing: leave it out")
            patterns = tuple(patterns)
            self._included = _any_of([pattern for pattern in patterns if not pattern.startswith("!")])
            self._excluded = _any_of([pattern[1:] for pattern in patterns if pattern.startswith("!")])
        self.patterns = patterns
        self._treespec: optree.PyTreeSpec | None = None
        self._mask: tuple[bool, ...] = ()

    def __call__(self, params: Tree, treespec: optree.PyTreeSpec) -> tuple[bool, ...]:
        """Whether each leaf of ``params``, a tree of structure ``treespec``, is chosen."""
        if torch.compiler.is_compiling():
            return self._find(params)
        if treespec is not self._treespec:
            self._mask, self._treespec = self._find(params), treespec
        return self._mask

    def check(self, params: Tree) -> None:
        """Refuse patterns that match no leaf of ``params``: most are misspelt.

        Raises:
            ValueError: there is one.
        """
        if callable(self.patterns):
            return
        names = [name_of(path) for path in tree.paths(params)]
        for pattern in self.patterns:
            if not any(re.match(fnmatch.translate(pattern.removeprefix("!")), name) for name in names):
                known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ValueError(f"the pattern {pattern!r} matches no parameter; their names are {known or 'none'}")

    def _find(self, params: Tree) -> tuple[bool, ...]:
        names = [name_of(path) for path in tree.paths(params)]
        return tuple([self._is_chosen(name) for name in names])

    def _is_chosen(self, name: str) -> bool:
        if callable(self.patterns):
            return bool(self.patterns(name))
        included = self._included is None or self._included.match(name) is not None
        return included and (self._excluded is None or self._excluded.match(name) is None)

    def __repr__(self) -> str:
        return stable(self.patterns if callable(self.patterns) else list(self.patterns))


def name_of(path: str) -> str:
    """The name of the leaf at a path: ``layers.0.weight`` for ``layers[0]['weight']``."""
    return _BRACKETS.sub(r".\1\2\3", path).removeprefix(".")


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)) if patterns else None
