"""What the user's own code can reach: its functions, and the Python objects that it keeps outside of the state.

Closures, globals, default arguments, attributes of objects and of classes are followed; what belongs to the standard
library, torch or helios_fn is passed through to find the user's code behind it, and not looked into for its own sake.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

_LIBRARIES = {*sys.stdlib_module_names, "helios_fn", "torch", "numpy", "optree", "hypothesis", "pytest", "_pytest"}
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, np.ndarray, np.generic)
_CONTAINERS = (list, tuple, set, frozenset, dict)
_STANDARD = os.path.dirname(os.__file__)
_MOST = 20_000
_DEEPEST = 24


class Place(NamedTuple):
    """Somewhere that the user's code can keep a value: in words, and the value that is there now."""

    where: str
    value: Any


class Reach(NamedTuple):
    """All that was found: the user's functions by their first names, and the places that they can write to."""

    functions: dict[types.FunctionType, str]
    places: list[Place]


def reach(roots: Mapping[str, Any]) -> Reach:
    """Follow ``roots``, which are named as the arguments that they were."""
    walk = _Walk()
    for name, value in roots.items():
        walk.follow(value, name, owned=False, depth=0)
    return Reach(walk.functions, walk.places)


def is_users(thing: Any) -> bool:
    """Whether a function or class was written by the user, by the module that it names."""
    module = getattr(thing, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] not in _LIBRARIES


def named_code(function: types.FunctionType) -> str:
    """A function and where it is, such as ``step (train.py:12)``."""
    code, name = function.__code__, function.__qualname__.rpartition("<locals>.")[2]
    return f"{name} ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})"


def names_used(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in a function and the functions inside it."""
    return {*code.co_names}.union(*(names_used(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _is_generated(file: str) -> bool:
    """Whether code was written by a library for the user's class, as by ``dataclass``."""
    return file == "<string>" or (file.startswith(_STANDARD) and "site-packages" not in file)


class _Walk:
    def __init__(self) -> None:
        self.functions: dict[types.FunctionType, str] = {}
        self.places: list[Place] = []
        self._seen: dict[int, Any] = {}  # the objects too: an id is good for as long as its object lives

    def follow(self, value: Any, name: str, *, owned: bool, depth: int) -> None:
        """Visit ``value``; ``owned`` says that it is the user's to write to."""
        if isinstance(value, _SIMPLE):
            if owned:
                self.places.append(Place(name, value))
            return
        if id(value) in self._seen or len(self._seen) > _MOST or depth > _DEEPEST:
            return
        self._seen[id(value)] = value
        for child, where, own in self._children(value, name, owned):
            self.follow(child, where, owned=own, depth=depth + 1)

    def _children(self, value: Any, name: str, owned: bool) -> Iterator[tuple[Any, str, bool]]:
        if isinstance(value, types.FunctionType):
            yield from self._of_function(value, name)
        elif isinstance(value, types.MethodType):
            yield from ((value.__func__, name, owned), (value.__self__, f"the object of {name}", owned))
        elif isinstance(value, functools.partial):
            yield from ((value.func, name, owned), (value.args, f"arguments of {name}", owned))
            yield (value.keywords, f"keywords of {name}", owned)
        elif isinstance(value, types.ModuleType):
            return
        elif isinstance(value, type):
            if is_users(value):
                yield from _of_class(value)
        else:
            if owned:
                self.places.append(Place(name, value))
            if isinstance(value, _CONTAINERS):
                yield from _of_container(value, name)
            yield from self._of_object(value, name, owned)

    def _of_function(self, function: types.FunctionType, name: str) -> Iterator[tuple[Any, str, bool]]:
        own = is_users(function) and not _is_generated(function.__code__.co_filename)
        here = named_code(function)
        if own:
            self.functions.setdefault(function, name)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield cell.cell_contents, f"closure variable {variable!r} of {here}", own
            except ValueError:
                continue  # not bound yet
        for defaults in filter(None, (function.__defaults__, function.__kwdefaults__)):
            yield defaults, f"a default argument of {here}", own
        for attribute, value in vars(function).items():
            yield value, f"attribute {attribute!r} of {here}", own
        if own:
            yield from _globals(function)

    def _of_object(self, value: Any, name: str, owned: bool) -> Iterator[tuple[Any, str, bool]]:
        cls = type(value)
        own = is_users(cls)
        if own:
            yield cls, f"class {cls.__name__}", False
        for attribute, child in _attributes(value):
            yield child, f"attribute {attribute!r} of {cls.__name__ if own else name}", own
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):
            yield wrapped, name, owned


def _globals(function: types.FunctionType) -> Iterator[tuple[Any, str, bool]]:
    used = names_used(function.__code__)
    for variable in sorted(used & function.__globals__.keys()):
        value = function.__globals__[variable]
        yield value, f"global {variable!r} of {function.__module__}", True
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _LIBRARIES:
            for name in sorted(used & vars(value).keys()):
                yield vars(value)[name], f"global {name!r} of {value.__name__}", True


def _of_class(cls: type) -> Iterator[tuple[Any, str, bool]]:
    for base in cls.__mro__:
        if not is_users(base):
            continue
        for attribute, value in list(vars(base).items()):
            value = getattr(value, "__func__", getattr(value, "fget", value))
            if attribute.startswith("__") and not isinstance(value, types.FunctionType):
                continue
            if not inspect.isdatadescriptor(value):
                yield value, f"class attribute {attribute!r} of {base.__name__}", True


def _of_container(value: Any, name: str) -> Iterator[tuple[Any, str, bool]]:
    """Elements that can hold more; the others are part of the container's own contents."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(pairs)[:_MOST]:
        if not isinstance(child, _SIMPLE):
            yield child, f"{name}[{key!r}]", False


def _attributes(value: Any) -> list[tuple[str, Any]]:
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            if hasattr(value, slot):
                found.setdefault(slot, getattr(value, slot))
    return list(found.items())
