"""File systems in which every call passes through one place, where it can fail, be cut short or kill.

The calls are found by looking at `FileSystem`, so one that is added later is covered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from helios_fn.checkpoint import FileSystem

CALLS = tuple(name for name, value in vars(FileSystem).items() if callable(value) and not name.startswith("_"))


class Killed(BaseException):
    """The process ends here: nothing catches it, and no later call has an effect."""


class Intercepted(FileSystem):
    """A real file system whose calls all pass through `call`, and know whether they are `armed`."""

    def __init__(self) -> None:
        self.is_armed = False

    def call(self, name: str, effect: Callable[..., Any], *args: Any) -> Any:
        """Override this: perform the call ``name``, or do not."""
        return effect(*args)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """While this is open, faults may strike."""
        self.is_armed = True
        try:
            yield
        finally:
            self.is_armed = False


def _through_call(name: str) -> Callable[..., Any]:
    plain = getattr(FileSystem, name)

    def method(self: Intercepted, *args: Any) -> Any:
        return self.call(name, lambda *given: plain(self, *given), *args)

    return method


for _name in CALLS:
    setattr(Intercepted, _name, _through_call(_name))


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at a call.

    Attributes:
        name: in words.
        code: the number of the error, or ``None`` for a fault that is no ``OSError``.
        raises: what is raised, or ``None`` where the call only does less than it was asked.
        part: how much of the call's work is done before: 0, 0.5 (half of the bytes of a write) or 1.
        lasting: whether all later calls fail as well.
    """

    name: str
    code: int | None = None
    raises: type[BaseException] | None = OSError
    part: float = 0.0
    lasting: bool = False

    def __str__(self) -> str:
        return self.name

    def error(self) -> BaseException:
        assert self.raises is not None
        if self.code is None:
            return self.raises()
        return OSError(self.code, os.strerror(self.code), "somewhere")


_CODES = ("ENOSPC", "EIO", "EACCES", "EROFS", "EINTR")
KILLS = [
    Fault("kill before the call", raises=Killed, lasting=True),
    Fault("kill in the middle of the call", raises=Killed, part=0.5, lasting=True),
    Fault("kill after the call", raises=Killed, part=1.0, lasting=True),
]
FAILURES = [
    *(Fault(f"{code} once", getattr(errno, code)) for code in _CODES),
    *(Fault(f"{code} from then on", getattr(errno, code), lasting=True) for code in _CODES[:4]),
    Fault("ENOSPC after half a write", errno.ENOSPC, part=0.5),
    Fault("EIO though it was done", errno.EIO, part=1.0),
    Fault("Ctrl-C", raises=KeyboardInterrupt),
    Fault("short read or write", raises=None),
]


class Faulty(Intercepted):
    """Strikes at the ``n``-th armed call (from 1), with ``n=0`` never; counts them in ``calls``."""

    def __init__(self, n: int = 0, fault: Fault = KILLS[0]) -> None:
        super().__init__()
        self.calls = 0
        self._counter = itertools.count(1)  # atomic, should calls come from several threads
        self._n = n
        self._fault = fault

    def call(self, name: str, effect: Callable[..., Any], *args: Any) -> Any:
        if not self.is_armed:
            return effect(*args)
        self.calls = number = next(self._counter)
        if number == self._n:
            return self._strike(name, effect, *args)
        if self._n and number > self._n and self._fault.lasting:
            self._release(name, effect, *args)
            raise self._fault.error()
        return effect(*args)

    def _strike(self, name: str, effect: Callable[..., Any], *args: Any) -> Any:
        if self._fault.raises is None:
            return effect(args[0], args[1][:1], *args[2:]) if name in ("read", "write") else effect(*args)
        if name == "write" and self._fault.part == 0.5:
            effect(args[0], args[1][: len(args[1]) // 2], *args[2:])
        elif self._fault.part == 1.0:
            result = effect(*args)
            if name in ("create", "open"):  # nobody will close it
                os.close(result)
        else:
            self._release(name, effect, *args)
        raise self._fault.error()

    def _release(self, name: str, effect: Callable[..., Any], *args: Any) -> None:
        if name == "close":  # the number is given back even where the call fails, or the process dies
            effect(*args)
