"""Comparing two runs, and saying where they differ first and where to look for the cause."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..types import Fingerprint, Row
from .digests import differing
from .trace import Trace
from .values import differences
from .verdicts import LawBroken

_SHOWN = 8
_MOST = 10_000
_START = """The initial states differ, so look at what makes them:
  - parameters initialised from a generator that has no seed: use hf.functional(..., seed=...)
  - a seed taken from the clock, the process id or the environment"""
_DATA = """The data differ first, so look at what makes a batch (dataset, transform, collate function, order):
  - it draws from a generator that no key controls: time, os.urandom, a Generator of its own
  - it keeps something in the process: a cache, a counter, statistics of the first batch it made
  - it returns something else when it is read again: files that change, a listing or a set without an order"""
_STEP = """The batches are equal up to there, so look at the step:
  - it keeps something in the process, outside the TrainState: an attribute, a global, a closure, a cache such as a
    normaliser made from the first batch that a process sees; put it into state.extra
  - it draws from a Generator of its own, the clock or os.urandom
  - it reads what can change: files, the environment
  - a kernel is not deterministic: try torch.use_deterministic_algorithms(True)"""
_VALIDATE = """Only what validation found differs, so look at the validate function and its loader:
  - it keeps something in the process: an average, a counter, a cache
  - it draws from a Generator of its own, the clock or os.urandom
  - a kernel is not deterministic: try torch.use_deterministic_algorithms(True)"""
_END = "Batches and log rows are equal, so look at what ends the run: should_stop must depend on the state alone."


class Finding(NamedTuple):
    """The first difference between two runs, in words, and the likely causes."""

    text: str
    causes: str


def assert_same_run(left: Trace, right: Trace, what: str) -> None:
    """Check that two runs had the same batches, log rows, final state and reason, bit for bit.

    Raises:
        LawBroken: they differ; names the first iteration, the first leaves, and the likely causes.
    """
    found = difference(left, right)
    if found is not None:
        raise LawBroken(f"{what}: {found.text}\n{found.causes}")


def difference(left: Trace, right: Trace) -> Finding | None:
    """The first difference between two runs, if there is one."""
    for find in (_in_start, _in_course, _in_end):
        found = find(left, right)
        if found is not None:
            return found
    return None


def _in_start(left: Trace, right: Trace) -> Finding | None:
    first, *others = [*left.starts, *right.starts] or [{}]
    for other in others:
        if other != first:
            return Finding(f"the job has another initial state each time:\n{_listed(differing(first, other))}", _START)
    return None


def _in_course(left: Trace, right: Trace) -> Finding | None:
    """What differs in the earliest iteration; a batch comes before the rows of its iteration."""
    found = [
        (at, 0, finding) for at, finding in (_other_batch(left, right), _repeated(left), _repeated(right)) if finding
    ]
    for order, find in enumerate((_other_metrics, _other_row), start=1):
        at, finding = find(left, right)
        if finding:
            found.append((at, order, finding))
    return min(found)[2] if found else None


def _repeated(trace: Trace) -> tuple[int, Finding | None]:
    for iteration in sorted(trace.conflicts):
        lines = _listed(differing(trace.batches[iteration], trace.conflicts[iteration]))
        text = f"iteration {iteration + 1} received another batch when it was repeated:\n{lines}"
        return iteration + 1, Finding(text, _DATA)
    return 0, None


def _other_batch(left: Trace, right: Trace) -> tuple[int, Finding | None]:
    for iteration in sorted(left.batches.keys() & right.batches.keys()):
        if left.batches[iteration] != right.batches[iteration]:
            lines = _listed(differing(left.batches[iteration], right.batches[iteration]))
            return iteration + 1, Finding(f"the batches differ from iteration {iteration + 1} on:\n{lines}", _DATA)
    return 0, None


def _other_metrics(left: Trace, right: Trace) -> tuple[int, Finding | None]:
    for iteration in sorted(left.metrics.keys() & right.metrics.keys()):
        lines = differing(left.metrics[iteration], right.metrics[iteration])
        if lines:
            text = f"the step gives other metrics from iteration {iteration + 1} on:\n{_listed(lines)}"
            return iteration + 1, Finding(text, _STEP)
    return 0, None


def _other_row(left: Trace, right: Trace) -> tuple[int, Finding | None]:
    for one, other in itertools.zip_longest(left.rows, right.rows):
        if repr(one) != repr(other):
            at = min(row.iteration for row in (one, other) if row is not None)
            text = f"the log rows differ first in iteration {at}:\n  {one or 'no row'}\n  {other or 'no row'}"
            if one is None or other is None:
                text = f"one log has {len(left.rows)} rows, the other {len(right.rows)}; " + text
            return at, Finding(text, _VALIDATE if _only_validation(left, right, one or other) else _STEP)
    return 0, None


def _only_validation(left: Trace, right: Trace, first: Row | Fingerprint) -> bool:
    if first.kind != "validation":
        return False
    if left.batches.keys() == right.batches.keys():
        return all(line.startswith("validation.") for line in differing(left.final, right.final))
    # What validation found has ended one run earlier: its log decides.
    trained = [[repr(row) for row in trace.rows if row.kind == "train"] for trace in (left, right)]
    return all(one == other for one, other in zip(*trained, strict=False))


def _in_end(left: Trace, right: Trace) -> Finding | None:
    if left.reason is not right.reason:
        return Finding(f"they ended for different reasons: {left.reason} and {right.reason}", _END)
    if left.batches.keys() != right.batches.keys():
        return Finding(f"one run has {len(left.batches)} iterations, the other {len(right.batches)}", _END)
    if left.state is not None and right.state is not None:
        lines = differences(left.state, right.state, most=_MOST)
    else:
        lines = differing(left.final, right.final)
    if not lines:
        return None
    validation = all(line.startswith("validation.") for line in lines)
    text = f"the final states differ in {len(lines)} leaves:\n{_listed(lines)}"
    return Finding(text, _VALIDATE if validation else _STEP)


def _listed(lines: list[str]) -> str:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:_SHOWN], *more])
