"""Tables as frozen dataclasses and back: every key known, every value of the annotated type."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from .source import Path, Source, dotted, unknown_key

D = TypeVar("D")
_SIMPLE = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


FREE: Mapping[str, bool] = types.MappingProxyType({"free": True})
"""Metadata of the field that takes all keys of a table which the other fields do not."""


class _Misfit(Exception):
    """A value is not of the type."""


def read(cls: type[D], table: Mapping[str, Any], source: Source, path: Path = ()) -> D:
    """Make a dataclass of a table.

    Raises:
        ValueError: a key is unknown or missing, or a value is of another type or out of range; the message has the
            file and the line.
    """
    kind: Any = cls
    hints, free = _hints(kind), _free(kind)
    given: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in table.items():
        if key in hints and key != free:
            given[key] = _checked(value, hints[key], source, (*path, key))
        elif free:
            others[key] = value
        else:
            unknown_key(source, (*path, key), [name for name in hints if not _is_code(hints[name])])
    if free:
        given[free] = copy.deepcopy(others)
    for name in _required(kind):
        if name not in given:
            _missing(name, hints[name], source, path)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        source.fail(path, f"{_section(path)}{error}", error)


def table_of(value: Any) -> dict[str, Any]:
    """The table that `read` makes an equal dataclass of. Values that are the defaults are left out.

    Raises:
        TypeError: a value has no form in TOML, such as a function.
    """
    table: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if "free" in field.metadata:
            table.update(_plain(found, field.name))
        elif not _is_default(field, found):
            table[field.name] = _plain(found, field.name)
    return table


def _is_default(field: dataclasses.Field[Any], found: Any) -> bool:
    default: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return default is not dataclasses.MISSING and type(default) is type(found) and bool(default == found)


def _plain(value: Any, name: str) -> Any:
    if value is None:
        return False  # TOML has no null; see `_fits`
    if dataclasses.is_dataclass(value):
        table = table_of(value)
        return table["name"] if _is_part(type(value)) and list(table) == ["name"] else table
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each, name) for key, each in value.items()}
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    if callable(value):
        raise TypeError(f"{name} is a function, {value!r}, which has no form in TOML: leave it to a script")
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _free(cls: Any) -> str:
    return next((field.name for field in dataclasses.fields(cls) if "free" in field.metadata), "")


def _required(cls: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [
        field.name for field in dataclasses.fields(cls) if field.default is missing and field.default_factory is missing
    ]


def _missing(name: str, hint: Any, source: Source, path: Path) -> None:
    if not path and dataclasses.is_dataclass(hint):
        needs = _required(hint)
        source.fail(path, f"there is no section [{name}]; it needs {' and '.join(needs) or 'no key'}")
    source.fail(path, f"{_section(path)}{name} is missing: {_words(hint)}")


def _section(path: Path) -> str:
    return f"[{dotted(path)}] " if path else ""


def _checked(value: Any, hint: Any, source: Source, path: Path) -> Any:
    try:
        return _fits(value, hint, source, path)
    except _Misfit:
        source.fail(path, f"{dotted(path)} must be {_words(hint)}, got {value!r}")


def _fits(value: Any, hint: Any, source: Source, path: Path) -> Any:
    """The value as one of the type, or `_Misfit`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return _one_of(value, typing.get_args(hint))
    if origin in (Union, types.UnionType):
        return _any_of(value, typing.get_args(hint), source, path)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_checked(each, item, source, (*path, str(at))) for at, each in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return read(hint, value, source, path)
        if _is_part(hint) and isinstance(value, str):
            made: Any = hint
            return made(value)
    if hint is float and type(value) in (int, float):
        return value
    if hint in _SIMPLE and type(value) is hint:
        return value
    if (hint is pathlib.Path and type(value) is str) or (origin is Mapping and isinstance(value, dict)):
        return value  # the dataclass makes of it what it wants
    raise _Misfit


def _any_of(value: Any, hints: tuple[Any, ...], source: Source, path: Path) -> Any:
    for hint in hints:
        try:
            return _fits(value, hint, source, path)
        except _Misfit:
            continue
    if value is False and type(None) in hints:
        return None  # how a file says so, TOML having no null
    raise _Misfit


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    raise _Misfit


def _is_part(hint: Any) -> bool:
    """Whether a table of that type may be a name alone: the rest is optional."""
    return bool(_free(hint)) and dataclasses.fields(hint)[0].name == "name"


def _is_code(hint: Any) -> bool:
    """Whether nothing but Python can make such a value."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return all(each is type(None) or not _words_of(each) for each in parts)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return _words_of(hint)
    parts = [_words_of(each) for each in typing.get_args(hint) if each is not type(None)]
    words = [*dict.fromkeys(each for each in parts if each)]
    if type(None) in typing.get_args(hint) and "true or false" not in words:
        words.append("false for none")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words_of(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return "one of " + ", ".join(str(each).lower() if isinstance(each, bool) else repr(each) for each in choices)
    if typing.get_origin(hint) is tuple:
        return f"a list, each item {_words(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if _is_part(hint):
            return "a name, or a table with a name and options"
        return f"a table with {', '.join(field.name for field in dataclasses.fields(hint))}"
    return "any value" if hint is Any else _SIMPLE.get(hint, "")
