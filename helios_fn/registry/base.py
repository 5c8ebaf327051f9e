"""A registry: names of one kind of part, and how each is made."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, overload

T = TypeVar("T")
Target = TypeVar("Target", bound=Callable[..., Any])
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class _Place(NamedTuple):
    """Where something was registered."""

    module: str
    line: int
    file: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}" if self.line else self.module


class _Entry(NamedTuple):
    """A part and its place; ``attribute`` names one that is still to be imported from the place's module."""

    target: Any
    place: _Place
    attribute: str = ""


class Registry(Generic[T]):
    """Names of one kind of part, each with the class or function that makes it.

        @MODELS.register                 # under its own name, "Classifier"
        class Classifier(nn.Module): ...

        @MODELS.register("small")        # under another one
        def small(width=8): return Classifier(width)

        MODELS.create("small", width=16)

    A registry is a container of names: ``name in MODELS``, ``sorted(MODELS)``, ``len(MODELS)``.

    Args:
        kind: what the parts are, for messages: ``"model"``.
        binds: the parts are functions that others call, such as losses. Then `create` binds the options of a
            registered function instead of calling it: ``create("top_k", k=3)`` is ``partial(top_k, k=3)``. A
            registered class is called in any case: its instances are the functions.
    """

    def __init__(self, kind: str, *, binds: bool = False) -> None:
        self.kind = kind
        self.binds = binds
        self._entries: dict[str, _Entry] = {}

    @overload
    def register(self, target: Target, /) -> Target: ...
    @overload
    def register(self, name: str, /, *, replace: bool = False) -> Callable[[Target], Target]: ...
    def register(self, target: Any, /, *, replace: bool = False) -> Any:
        """A decorator: ``@R.register`` or ``@R.register("name")``. The class or function stays as it is.

        Registering from the same line again, as a reload does, replaces. ``replace=True`` replaces in any case.

        Raises:
            ValueError: the name is taken, with both places; or it is no name.
            TypeError: what is registered cannot be called.

        Example:
            >>> from helios_fn.registry import MODELS, create_model
            >>> @MODELS.register
            ... def line(width: int = 1):
            ...     return torch.nn.Linear(width, 1)
            ...
            >>> create_model("line", width=3)
            Linear(in_features=3, out_features=1, bias=True)
            >>> create_model("lime")
            Traceback (most recent call last):
                ...
            ValueError: there is no model 'lime'; did you mean 'line'?...
        """
        if not isinstance(target, str):
            name = getattr(target, "__name__", None)
            if not callable(target) or not isinstance(name, str):
                raise TypeError(f"@register decorates a class or a function, got {target!r}")
            return self._add(name, target, _caller(2), replace)

        def decorate(decorated: Target) -> Target:
            return self._add(target, decorated, _caller(2), replace)

        return decorate

    def known(self, module: str, attributes: str) -> None:
        """Register attributes of a module that is imported when one of them is needed.

        ``"one two=Two"`` registers the attributes ``one`` and ``Two``, the second under the name ``two``.
        """
        for each in attributes.split():
            name, _, attribute = each.partition("=")
            self._entries[name] = _Entry(None, _Place(module, 0, ""), attribute or name)

    def create(self, name: str, /, *args: Any, **options: Any) -> T:
        """Make the part of that name.

        What the part itself raises passes unchanged.

        Raises:
            ValueError: there is no such name; the message has the closest ones.
            TypeError: the arguments do not fit; the message has the signature and where it is.
        """
        target = self.get(name)
        bound = self.binds and not isinstance(target, type)
        self._check(name, target, args, options, partial=bound)
        if not bound:
            made: T = target(*args, **options)
            return made
        return functools.update_wrapper(functools.partial(target, *args, **options), target)  # type: ignore[return-value]

    def get(self, name: str) -> Callable[..., Any]:
        """What was registered under the name; raises ValueError if nothing was."""
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None:
            raise ValueError(self._unknown(name))
        if not entry.attribute:
            return entry.target
        return getattr(importlib.import_module(entry.place.module), entry.attribute)

    def where(self, name: str) -> str:
        """Where the name was registered, as ``module:line``."""
        return str(self._entries[name].place)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self.names()) or 'empty'})"

    def _add(self, name: str, target: Target, place: _Place, replace: bool) -> Target:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a {self.kind}: use letters, digits, '_', '.' and '-', with a letter, digit or "
                "'_' first"
            )
        if not callable(target):
            raise TypeError(f"@register decorates a class or a function, got {target!r} for {self.kind} {name!r}")
        before = self._entries.get(name)
        if before is not None and not replace and not _is_again(before, target, place):
            raise ValueError(
                f"{self.kind} {name!r} is registered twice: at {before.place} and now at {place}. "
                f'Give one another name, @register("...")'
            )
        self._entries[name] = _Entry(target, place)
        return target

    def _unknown(self, name: object) -> str:
        if not self._entries:
            return (
                f"there is no {self.kind} {name!r}, for none is registered: import the module that registers it, or "
                'discover its package, discover("my_project")'
            )
        return (
            f"there is no {self.kind} {name!r}{closest(str(name), self._entries)} "
            f"Registered: {', '.join(self.names())}. Others are there once their package is discovered"
        )

    def _check(self, name: str, target: Any, args: Any, options: Any, *, partial: bool) -> None:
        try:
            signature = inspect.signature(target)
        except (TypeError, ValueError):
            return  # some callables written in C have none: they check for themselves
        try:
            (signature.bind_partial if partial else signature.bind)(*args, **options)
        except TypeError as error:
            stranger = next((key for key in options if key not in signature.parameters), "")
            hint = closest(stranger, signature.parameters) if "unexpected" in str(error) else "."
            raise TypeError(
                f"{self.kind} {name!r} cannot be made so: {error}{hint} It is {name}{_text(signature)}, "
                f"at {self.where(name)}"
            ) from None


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``"; did you mean 'cnn'?"``, or a full stop."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), folded, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(folded[each]) for each in close)}?" if close else "."


def _is_again(before: _Entry, target: Any, place: _Place) -> bool:
    """Whether this is the same definition once more: of a reloaded module, or of a script that is imported too."""
    names = [getattr(each, "__qualname__", None) for each in (before.target, target)]
    return before.place[1:] == place[1:] and names[0] == names[1]


def _caller(depth: int) -> _Place:
    frame = sys._getframe(depth)
    return _Place(str(frame.f_globals.get("__name__", "?")), frame.f_lineno, frame.f_code.co_filename)


class _Verbatim(str):
    """An annotation that is text already, which `inspect` would put in quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _text(signature: inspect.Signature) -> str:
    parameters = [
        each.replace(annotation=_Verbatim(each.annotation)) if isinstance(each.annotation, str) else each
        for each in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
