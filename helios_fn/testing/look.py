"""A closer look at a job that has broken a law: what can be found out about the cause by running it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import tree
from ..data import Loader, as_source
from ..errors import PurityError
from .compare import assert_same_run
from .interrupt import Stop
from .kept import changes, kept
from .reach import Reach, reach
from .suspects import suspects
from .trace import Job, run_with
from .values import differences
from .verdicts import LawBroken

_MOST = 8
_MOST_BYTES = 2**30
_ALL = 10**9
Run = tuple[Job, list[Stop]]


class Tried:
    """The two runs that a law compares at the moment."""

    def __init__(self) -> None:
        self.runs: tuple[Run, Run] | None = None


@contextmanager
def closer_look(job: Job) -> Iterator[Tried]:
    """Add to the message of a law that is broken inside what a closer look at ``job`` shows."""
    tried = Tried()
    try:
        yield tried
    except LawBroken as error:
        lines = look(job, tried.runs)
        if not lines:
            raise
        told = "\n".join(f"  - {line}" for line in lines)
        fuller = LawBroken(f"{error}\nA closer look at this job:\n{told}")
        for note in getattr(error, "__notes__", []):
            fuller.add_note(note)
        raise fuller from error.__cause__


def look(job: Job, runs: tuple[Run, Run] | None = None) -> list[str]:
    """What can be told about the cause: each finding in words, the surest first. Never raises."""
    loader = _attempt(job.new_loader)
    same = job if loader is None else dataclasses.replace(job, loader=lambda: loader)
    places = reach(_roots(job, loader))
    found: list[str] = []
    for probe in (
        lambda: [] if runs is None else _parting(*runs),
        lambda: _impurity_and_memory(job, loader, same),
        lambda: _kernels(same),
        lambda: _again(job),
        lambda: _names(places),
    ):
        found += _attempt(probe) or []
    return found


def look_at_functions(roots: dict[str, Any], call: Callable[[], Any]) -> list[str]:
    """The same for functions alone: what ``call``, which calls them, writes to in the process, and suspicious names."""
    before = kept(reach(roots))
    _attempt(call)
    _attempt(call)
    written = changes(before, kept(reach(roots)))
    return _written(written) + _names(reach(roots))


def _attempt(probe: Callable[[], Any]) -> Any:
    """What ``probe`` finds; nothing if it fails: what is wrong with a job may be in the way of looking at it."""
    try:
        return probe()
    except Exception:
        return None


def _roots(job: Job, loader: Any) -> dict[str, Any]:
    source = _attempt(lambda: as_source(loader)) if loader is not None else None
    parts = {}
    if isinstance(source, Loader):
        parts = {name: getattr(source, name) for name in ("dataset", "transform", "collate", "order", "worker_init")}
        parts = {name: part for name, part in parts.items() if part is not None}
    return {"the step": job.step, **parts, "the loader": loader, **job.keywords} | (
        {"the initial state": job.state} if callable(job.state) else {}
    )


def _impurity_and_memory(job: Job, loader: Any, same: Job) -> list[str]:
    """What a run changes in the process, with every step of it checked in full."""
    before = kept(reach(_roots(job, loader)))
    checked = dataclasses.replace(same, cfg=dataclasses.replace(same.cfg, purity_checks=_ALL))
    found = []
    try:
        run_with(checked, [])
    except Exception as error:
        impure = _cause(error, PurityError)
        found += [] if impure is None else [f"the step is not pure: {impure}"]
    written = changes(before, kept(reach(_roots(job, loader))))
    return found + _written(written)


def _written(places: list[str]) -> list[str]:
    return [f"this changes from call to call, and is no part of the state: {where}" for where in places[:_MOST]]


def _again(job: Job) -> list[str]:
    first = run_with(job, [])
    try:
        assert_same_run(first, run_with(job, []), "")
    except LawBroken as error:
        told = str(error).removeprefix(": ").partition(":")[0]
        return [f"it is not the same twice even without any interruption: {told}"]
    return []


def _kernels(job: Job) -> list[str]:
    """What torch says of the first iteration when it is asked for deterministic kernels."""
    short = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, total=1))
    # Not by torch.use_deterministic_algorithms, which imports the compiler: some seconds.
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        run_with(short, [])
    except Exception as error:
        told = _cause(error, RuntimeError, "deterministic")
        if told is not None:
            sentence = str(told).partition(". ")[0]
            return [f"with torch.use_deterministic_algorithms(True) torch refuses a kernel: {sentence}"]
    finally:
        torch.set_deterministic_debug_mode(mode)
    return []


def _names(found: Reach) -> list[str]:
    named = [f"a suspicion: {suspect}" for suspect in suspects(found)]
    return named[:_MOST] + ([f"... and {len(named) - _MOST} more such names"] if len(named) > _MOST else [])


def _parting(left: Run, right: Run) -> list[str]:
    """The first iteration whose state differs between two runs, and the leaves, with both values."""
    here, there = _states(left), _states(right)
    for iteration in sorted(here.keys() & there.keys()):
        lines = differences(here[iteration], there[iteration], most=3)
        if lines:
            shown = "".join(f"\n      {line}" for line in lines)
            return [f"the states part in iteration {iteration + 1}:{shown}"]
    return []


def _states(run: Run) -> dict[int, Any]:
    """What the step gave in each iteration, when it was done last; of large states those of the first iterations."""
    job, stops = run
    seen: dict[int, Any] = {}

    def keeping(state: Any, batch: Any) -> Any:
        new = job.step(state, batch)
        size = sum(leaf.nbytes for leaf in tree.tensors(new))
        if (state.counters.iteration + 1) * size <= _MOST_BYTES:
            seen[state.counters.iteration] = new
        return new

    run_with(dataclasses.replace(job, step=keeping), stops)
    return seen


def _cause(error: BaseException, kind: type[BaseException], word: str = "") -> BaseException | None:
    """The first error of a kind, with a word in it, among an error and those it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind) and word in str(seen) and type(seen).__name__ != "RunFailed":
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
