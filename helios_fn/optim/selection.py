"""Choosing leaves of a tree by their names, see `helios_fn.patterns`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optree
import torch

from .. import tree
from ..patterns import Chooser, name_of
from ..types import Tree
from .text import brief, stable

Patterns: TypeAlias = str | Sequence[str] | Callable[[str], bool]
"""One shell pattern, several, or a function of the name."""


class Selection:
    """The leaves that ``patterns`` choose.

    Patterns mean what they mean to a `helios_fn.patterns.Chooser`.

    Raises:
        TypeError: ``patterns`` is none of the three kinds.
        ValueError: there are no patterns.
    """

    __slots__ = ("_is_chosen", "_mask", "_treespec", "patterns")

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
        self.patterns = patterns
        self._is_chosen: Callable[[str], bool] = patterns if callable(patterns) else Chooser(patterns)
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
        if not isinstance(self._is_chosen, Chooser):
            return
        names = [name_of(path) for path in tree.paths(params)]
        for pattern in self._is_chosen.idle(names):
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"the pattern {pattern!r} matches no parameter; their names are {known or 'none'}")

    def _find(self, params: Tree) -> tuple[bool, ...]:
        names = [name_of(path) for path in tree.paths(params)]
        return tuple([bool(self._is_chosen(name)) for name in names])

    def __repr__(self) -> str:
        return stable(self.patterns if callable(self.patterns) else list(self.patterns))
