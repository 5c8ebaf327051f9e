"""Parts made by their registries, with the parts among their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registry import REGISTRIES, SCHEDULES, Registry
from .parts import Part
from .source import Path, Source, dotted

_ONE = {**{registry.kind.replace(" ", "_"): registry for registry in REGISTRIES}, "lr": SCHEDULES}
_MANY = {f"{kind}{'es' if kind.endswith('s') else 's'}": registry for kind, registry in _ONE.items() if kind != "lr"}


def create(registry: Registry[Any], part: Part, source: Source, path: Path, *given: Any, **also: Any) -> Any:
    """Make a part; ``given`` and ``also`` are what it gets beside its options.

    Raises:
        ValueError: there is no such name, the options do not fit, or the part refuses their values; the message has
            the place in the file. Other errors of the part pass, with that place in a note.
    """
    if part.name not in registry:
        try:
            registry.get(part.name)
        except ValueError as error:
            named = (*path, "name")
            source.fail(named if named in source else path, str(error))
    options = resolved(part, source, path)
    for key in also:
        if key in options:
            source.fail((*path, key), f"{dotted((*path, key))} is set by the experiment itself: leave it out")
    made_from = f"{registry.kind} {part.name!r} ({registry.where(part.name)})"
    try:
        return registry.create(part.name, *given, **options, **also)
    except (TypeError, ValueError) as error:
        # A part of the library refuses a kind of value by TypeError; in another it may be a fault of the program.
        if isinstance(error, ValueError) or "cannot be made so" in str(error) or _is_ours(registry, part.name):
            said = str(error) if made_from.split(" (")[0] in str(error) else f"{made_from}: {error}"
            source.fail(path, said, error)
        error.add_note(f"while making {made_from} of {source.where(path)}")
        raise
    except ImportError as error:
        raise ImportError(f"{source.where(path)}: {made_from}: {error}", name=error.name) from error
    except Exception as error:
        error.add_note(f"while making {made_from} of {source.where(path)}")
        raise


def _is_ours(registry: Registry[Any], name: str) -> bool:
    return registry.where(name).startswith("helios_fn.")


def resolved(part: Part, source: Source, path: Path) -> dict[str, Any]:
    """The options of a part as its constructor gets them; raises as `create` does."""
    return {key: _resolved(key, value, source, (*path, key)) for key, value in part.options.items()}


def _resolved(key: str, value: Any, source: Source, path: Path) -> Any:
    """An option as the constructor gets it: itself, or the part that it describes."""
    if key in _ONE and _is_part(value):
        return create(_ONE[key], _part(value), source, path)
    if key in _MANY and isinstance(value, list) and value:
        registry = _MANY[key]
        # A plain name is a part where it is one; else it may be any text that the constructor wants.
        if all(_is_part(each) or (isinstance(each, str) and each in registry) for each in value):
            return [create(registry, _part(each), source, (*path, str(at))) for at, each in enumerate(value)]
    return value


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _part(table: Mapping[str, Any] | str) -> Part:
    if isinstance(table, str):
        return Part(table, {})
    return Part(table["name"], {key: value for key, value in table.items() if key != "name"})
