"""Comparing two runs, and saying where and why they differ."""

from __future__ import annotations

from .. import tree
from .trace import Trace

_CAUSES = """Likely causes:
  - the step or the dataset draws from a generator that no key controls (time, os.urandom, an own Generator)
  - state outside the TrainState: a Python attribute, a closure, a cache that the step reads and writes
  - a kernel that is not deterministic: try torch.use_deterministic_algorithms(True)
  - the dataset returns something else when it is read again"""


class LawBroken(AssertionError):
    """A law does not hold; the message says where two runs differ first."""


def assert_same_run(left: Trace, right: Trace, what: str) -> None:
    """Check that two runs had the same batches, log rows, final state and reason, bit for bit.

    Raises:
        LawBroken: they differ; names the first iteration and the first leaves.
    """
    found = _first_difference(left, right)
    if found is not None:
        raise LawBroken(f"{what}: {found}\n{_CAUSES}")


def _first_difference(left: Trace, right: Trace) -> str | None:
    for trace in (left, right):
        if trace.conflicts:
            return f"iteration {trace.conflicts[0] + 1} received another batch when it was repeated"
    for iteration in sorted(left.batches.keys() | right.batches.keys()):
        if left.batches.get(iteration) != right.batches.get(iteration):
            missing = iteration not in left.batches or iteration not in right.batches
            return f"the batches differ from iteration {iteration + 1} on" + (" (one run ended)" if missing else "")
    for one, other in zip(left.rows, right.rows, strict=False):
        if repr(one) != repr(other):
            return f"the log rows differ first in iteration {one.iteration}:\n  {one}\n  {other}"
    if len(left.rows) != len(right.rows):
        return f"one log has {len(left.rows)} rows, the other {len(right.rows)}"
    if left.reason is not right.reason:
        return f"they ended for different reasons: {left.reason} and {right.reason}"
    differences = tree.diff(left.state, right.state)
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences[:8])
        return f"the final states differ in {len(differences)} leaves:\n{shown}"
    return None
