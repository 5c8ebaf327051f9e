"""TOML of plain values: read with the standard library, and written so that it reads back equal."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WORD = re.compile(r"[A-Za-z_./~][A-Za-z0-9_./~+-]*")
_ELSEWHERE = {"true": "true", "false": "false", "none": "false", "null": "false", "nan": "nan", "inf": "inf"}


def parse(text: str, name: str) -> dict[str, Any]:
    """The table that a document holds; raises ValueError with the name of the file."""
    import tomllib  # not when helios_fn is imported

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None


def parse_value(text: str) -> Any:
    """One value as it would stand after ``key =``; plain words and paths may go without quotes.

    Raises:
        ValueError: it is neither.
    """
    import tomllib

    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        table = {}
    if list(table) == ["value"]:
        return table["value"]
    if text.lower() in _ELSEWHERE:
        raise ValueError(f"{text} is no TOML value: write {_ELSEWHERE[text.lower()]}, or '\"{text}\"' for the word")
    if _WORD.fullmatch(text):
        return text
    raise ValueError(
        f"{text!r} is no TOML value: write numbers, true and false and [lists] as in a TOML file, and other text in "
        "quotes that the shell leaves alone, '\"like this\"'"
    )


def dump(table: Mapping[str, Any]) -> str:
    """A document that `parse` reads back equal: values first, then a section for each table.

    Raises:
        TypeError: a value has no form in TOML, such as ``None``.
    """
    return "\n".join(_section((), table)).strip("\n") + "\n"


def _section(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {value_text(value)}" for key, value in plain.items()]
    if path and (lines or not table):
        lines = ["", f"[{'.'.join(map(_key, path))}]", *lines]
    for key, value in table.items():
        if key not in plain:
            lines += _section((*path, key), value)
    return lines


def value_text(value: Any) -> str:
    """One value in one line; raises TypeError where TOML has no form for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {value_text(each)}" for key, each in value.items())
        return f"{{{inside}}}"
    raise TypeError(f"TOML has no form for {value!r}, of type {type(value).__name__}")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"TOML has text for keys, got {key!r}")
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, apart from DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
