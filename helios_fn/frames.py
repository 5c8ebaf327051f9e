"""Tracebacks that begin where the user's code does.

Between ``run(...)`` and a line of the user's loss lie some twenty frames of this package, which tell nothing about
the mistake. They are left out, as JAX leaves out its own (``JAX_TRACEBACK_FILTERING``).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, ParamSpec, TypeVar

import numpy
import optree
import torch

_OURS = f"{Path(__file__).parent}{os.sep}"
# Not <stdin> or <string>, which somebody has typed.
_MACHINERY = (
    *(f"{Path(str(module.__file__)).parent}{os.sep}" for module in (torch, numpy, optree)),
    "<frozen ",
    "<eval_with_key>",
    "<__array_function__",
)
_PYTHON = f"{Path(os.__file__).parent}{os.sep}"
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")  # may lie inside of it
_FULL = "HELIOS_FN_TRACEBACK"
_NOTE = f"(The frames of helios_fn itself are left out; set {_FULL}=full to see them.)"
_LAST = 2  # of our frames, where the last of all is ours: what refused something, and what asked it

E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")
R = TypeVar("R")


def border(function: Callable[P, R]) -> Callable[P, R]:
    """Focus what a public function raises, however deep inside something was refused."""

    @functools.wraps(function)
    def bordered(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            focused(error)
            raise

    return bordered


def focused(error: E) -> E:
    """``error``, with this package's frames taken out of its traceback and of those of its causes.

    All is kept where the fault may be ours: where no frame is the user's and the last one did not refuse something on
    purpose, by a ``raise``. All is kept, too, if the environment variable ``HELIOS_FN_TRACEBACK`` is ``full``.
    """
    if os.environ.get(_FULL) == "full":
        return error
    chain = _causes(error)
    theirs = any(_whose(link) == "user" for each in chain for link in _links(each.__traceback__))
    before = _frames(chain)
    for each in chain:
        links = list(_links(each.__traceback__))
        if theirs or (links and _whose(links[-1]) == "ours" and _refused(links[-1])):
            # Not by assignment, which an exception that is a frozen dataclass refuses; likewise its notes.
            BaseException.with_traceback(each, _focused(links))
    if _frames(chain) < before and _NOTE not in getattr(error, "__notes__", ()):
        with contextlib.suppress(AttributeError):
            error.add_note(_NOTE)
    return error


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what is printed above it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    # By identity: errors of a user's own may be compared by tensors that they hold.
    while link is not None and not any(link is each for each in chain):
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _focused(links: list[TracebackType]) -> TracebackType | None:
    """A traceback of the frames that are not ours, and of the last of ours if nothing comes after them."""
    end = len(links)
    while end and _whose(links[end - 1]) == "ours":
        end -= 1
    last = max(end, len(links) - _LAST)
    chain: TracebackType | None = None
    for at in reversed(range(len(links))):
        if at >= last or _whose(links[at]) != "ours":
            chain = TracebackType(chain, links[at].tb_frame, links[at].tb_lasti, links[at].tb_lineno)
    return chain


def _frames(chain: list[BaseException]) -> int:
    return sum(1 for each in chain for _ in _links(each.__traceback__))


def _links(link: TracebackType | None) -> Iterator[TracebackType]:
    while link is not None:
        yield link
        link = link.tb_next


def whose(name: str) -> Literal["ours", "machinery", "user"]:
    """Whose code is in a file of this name: this package's; Python's, or that of what we build on; or the user's."""
    if name.startswith(_OURS):
        return "ours"
    python = name.startswith(_PYTHON) and not any(folder in name for folder in _INSTALLED)
    return "machinery" if python or name.startswith(_MACHINERY) else "user"


def _whose(link: TracebackType) -> str:
    return whose(link.tb_frame.f_code.co_filename)


def _refused(link: TracebackType) -> bool:
    return link.tb_frame.f_code.co_code[link.tb_lasti] == dis.opmap["RAISE_VARARGS"]
