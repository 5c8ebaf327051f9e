"""JSON with one spelling per value, and a parser that a hostile file cannot hurt."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ..types import Json

MAX_DEPTH = 256
MAX_NUMBER_LENGTH = 1000

# Strings are matched whole, so that brackets and digits inside of them do not count; the optional closing quote
# keeps the match linear for a string that never ends. The possessive quantifiers give nothing back: without
# them the matcher remembers each character of a long string, in a hundred times its memory.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (MAX_NUMBER_LENGTH + 1))
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_BLOCK = 1 << 16
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def dump(value: Any, *, indent: int | None = None) -> bytes:
    """The canonical bytes of a JSON value: ASCII, sorted keys, one newline at the end.

    Python's dialect: ``NaN``, ``Infinity`` and ``-Infinity`` are numbers.

    Raises:
        TypeError: ``value`` holds something that JSON has no word for.
        ValueError: ``value`` contains itself.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, indent=indent, separators=separators).encode() + b"\n"


def parse(data: bytes, *, indent: int | None = None) -> Json:
    """The value that `dump` wrote with the same ``indent``; any other spelling of it is refused.

    Time and memory are linear in the length of ``data``: the caller bounds it. Nesting deeper than
    256 levels and numbers longer than 1000 characters are refused before they cost anything.

    Raises:
        ValueError: ``data`` is not the canonical JSON of any value.
    """
    bare = _without_strings(data)
    if _LONG_NUMBER.search(bare):
        raise ValueError(f"a number of more than {MAX_NUMBER_LENGTH} characters")
    _check_depth(bare)
    value: Json = json.loads(data.decode("ascii"))
    if dump(value, indent=indent) != data:
        raise ValueError("not in canonical form")
    return value


def _without_strings(data: bytes) -> bytes:
    if b"\\" in data:
        return _STRING.sub(b"", data)
    return b"".join(data.split(b'"')[::2])  # without escapes, each quote begins or ends a string


def _check_depth(bare: bytes) -> None:
    brackets = np.frombuffer(bare.translate(None, _OTHERS), np.uint8)
    depth = 0
    for start in range(0, len(brackets), _BLOCK):
        depths = depth + np.cumsum(_STEPS[brackets[start : start + _BLOCK]], dtype=np.int64)
        if depths.max() > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        depth = int(depths[-1])
