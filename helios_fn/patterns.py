"""Names of leaves, and choosing among them by patterns.

The name of a leaf is its path with dots: dict keys, field names and positions from the root down, such as
``layers.0.weight``.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

_BRACKETS = re.compile(r"""\[(?:'([^']*)'|"([^"]*)"|([^]]*))\]""")


def name_of(path: str) -> str:
    """The name of the leaf at a path: ``layers.0.weight`` for ``layers[0]['weight']``."""
    return _BRACKETS.sub(r".\1\2\3", path).removeprefix(".")


def closest(pattern: str, names: Sequence[str]) -> str:
    """The names that somebody may have meant by a pattern which matches none, in words for an error message."""
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return ", ".join(map(repr, close)) or "none"


class Chooser:
    """Whether a name is chosen by shell patterns.

    A pattern is a shell pattern over the whole name (``"*.bias"``, ``"head.*"``, ``"layers.[01].*"``; ``*`` matches
    dots too). A name is chosen if a pattern matches it and none that begins with ``!`` does; where all begin with
    ``!``, every other name is chosen.
    """

    __slots__ = ("_excluded", "_included", "_patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._included = _any_of([pattern for pattern in patterns if not pattern.startswith("!")])
        self._excluded = _any_of([pattern[1:] for pattern in patterns if pattern.startswith("!")])

    def __call__(self, name: str) -> bool:
        """Whether ``name`` is chosen."""
        included = self._included is None or self._included.match(name) is not None
        return included and (self._excluded is None or self._excluded.match(name) is None)

    def idle(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of ``names``: most are misspelt."""
        names = list(names)
        matchers = [(pattern, re.compile(fnmatch.translate(pattern.removeprefix("!")))) for pattern in self._patterns]
        return [pattern for pattern, matcher in matchers if not any(map(matcher.match, names))]


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)) if patterns else None
