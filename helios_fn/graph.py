"""Functions compiled into one graph each, or an error that says which line stands in the way."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from .errors import NotTraceable
from .tracing import is_traced

_OURS = os.path.dirname(__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_TOO_MANY = (
    "the function was compiled for too many different shapes or Python values. Where the shapes of the batches vary, "
    "compile for all of them at once with the option dynamic=True, or pad the batches to a few sizes; numbers that "
    "change along a run belong into the state as tensors"
)
_RAISED = "Developer debug context: raised exception "
_OWN = frozenset(("fullgraph", "disable"))
_OF_ARGUMENTS = re.compile(r"(?:[\w.]+\()*args\b")


def whole_graph(fn: Callable[..., Any], options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """``fn`` compiled by ``torch.compile`` into one graph for each combination of shapes, without graph breaks.

    Shapes are fixed (``dynamic=False``) unless ``options`` say otherwise: the shorter last batch of an epoch
    is compiled once, and full batches keep the faster code. What ``fn`` closes over and the global names it reads
    are taken as they are at the first call for each shape, as by ``jax.jit``: it must be pure. Inside another
    compiled region, or under a ``torch.func`` transform, ``fn`` itself is called, and becomes part of it.

    Args:
        fn: takes and returns trees of tensors. Python numbers among its inputs are constants of the graph.
        options: further keywords of ``torch.compile``, such as ``mode``, ``backend`` or ``dynamic``.

    Raises:
        ValueError: ``options`` name what is decided here.
        NotTraceable: (when called) ``fn`` cannot be traced, or was called with too many different shapes. What
            ``fn`` itself raises is raised as it is.
    """
    settings = _settings(dict(options or {}))
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        if is_traced():
            return fn(*args)
        # The compiler's own errors are known by their module: importing it takes longer than importing torch.
        try:
            if not compiled:
                compiled.append(torch.compile(_with_own_code(fn), fullgraph=True, **settings))
            return compiled[0](*args)
        except Exception as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            if type(error).__name__ == "FailOnRecompileLimitHit":
                raise NotTraceable(_TOO_MANY) from error
            fn(*args)  # a fault of the function itself is then raised in its own words
            raise NotTraceable(_explanation(error)) from error

    return call


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords of ``torch.compile``: the user's, and ours."""
    if _OWN & given.keys():
        raise ValueError(
            f"{min(_OWN & given.keys())!r} cannot be chosen: a step is compiled into one graph or not at all"
        )
    options, mode = given.pop("options", None) or {}, given.pop("mode", None)
    if mode is not None:  # torch takes a mode or options, and a mode is a set of options
        options = {**torch._inductor.list_mode_options(mode, given.get("dynamic")), **options}
    return {"dynamic": False, **given, "options": {"guard_filter_fn": _on_arguments, **options}}


def _on_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's guards are checked before each call: those on arguments, and on modes of the process.

    The others (on every function, closure and global name on the way, over a thousand for a small step) can only
    change where the function is not pure, and take longer to check than a small step to run.
    """
    return [not guard.name or _OF_ARGUMENTS.match(guard.name) is not None for guard in guards]


def _with_own_code(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls ``fn``, with a code object that no other function has.

    The compiler keeps its graphs by code object, and all closures of one ``def`` share theirs: without this, one
    step would be taken for another, since nothing checks which function was compiled.
    """

    def region(*args: Any) -> Any:
        return fn(*args)

    code = region.__code__.replace(co_name=getattr(fn, "__name__", "region"))
    return FunctionType(code, region.__globals__, closure=region.__closure__)


def _explanation(error: Exception) -> str:
    place = _place(error)
    reason = _reason(error)
    return (
        f"this cannot be compiled into one graph{place}: {reason}. In a compiled region the values of tensors are not "
        "known: leave .item(), float(), printing and branches on them away, take torch.where instead, or do not compile"
    )


def _place(error: Exception) -> str:
    """Where in the user's code the error arose, as far as it is known."""
    frames = list(getattr(error, "real_stack", None) or ())
    outside = [frame for frame in frames if not frame.filename.startswith((_OURS, _TORCH))]
    if not outside:
        return ""
    line = f": {outside[-1].line}" if outside[-1].line else ""
    return f", because of {outside[-1].filename}:{outside[-1].lineno}{line}"


def _reason(error: Exception) -> str:
    """The sentences of the compiler's message that say what it met."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in said:
        if "data-dependent expression" in line:
            return "Python needs the value of a tensor here"
    for line in said:
        if line.startswith(_RAISED):
            return line.removeprefix(_RAISED)
    if "raised:" in (said or [""])[0]:
        return " ".join(said[:2])  # the backend's own error stands in the second line
    explained = [line.removeprefix("Explanation: ") for line in said if line.startswith("Explanation: ")]
    return "; ".join([*said[:1], *explained[:1]]).rstrip(".") or type(error).__name__
