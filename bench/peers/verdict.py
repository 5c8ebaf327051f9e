"""Was a resume exact? A pure comparison of an interrupted run with one that was left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .leg import Micro, Record


class Verdict(NamedTuple):
    """What was exact.

    Attributes:
        order: every micro-batch of both legs held the samples that it holds in the run that was left alone, and none
            was left out; those after the last checkpoint may come again.
        batches: and its bytes were the same.
        state: parameters, buffers and the optimiser's moments have the same bits at the end.
        again: how many micro-batches were trained on again, where the order is exact.
        why: what went wrong first; empty where all is exact.
    """

    order: bool
    batches: bool
    state: bool
    again: int = 0
    why: str = ""


def judge(alone: Record, first: Sequence[Micro], second: Record, saved: int) -> Verdict:
    """Compare the legs of an interrupted run with the record of an uninterrupted one.

    Args:
        alone: the uninterrupted run.
        first: what the leg that was killed had trained on.
        second: the leg that resumed.
        saved: how many micro-batches the newest checkpoint should hold; used only to say what went wrong.
    """
    if second.error:
        return Verdict(False, False, False, 0, f"cannot go on: {second.error}")
    start = len(alone.micros) - len(second.micros)
    expected = alone.micros[max(start, 0) :]
    order = 0 <= start <= len(first) and _ids(first) == _ids(alone.micros[: len(first)])
    order = order and _ids(second.micros) == _ids(expected)
    batches = order and list(first) == alone.micros[: len(first)] and second.micros == expected
    state = second.final == alone.final
    again = len(first) - start if order else 0
    if not order:
        why = _disorder(alone.micros, second.micros, saved)
    elif not batches:
        why = "the same samples, augmented differently"
    elif not state:
        parts = [name for name, found in alone.final.items() if second.final.get(name) != found]
        why = f"the same batches, but other {', '.join(parts)}"
    else:
        why = ""
    return Verdict(order, batches, state, again, why)


def _ids(micros: Sequence[Micro]) -> list[tuple[int, ...]]:
    return [micro.ids for micro in micros]


def _disorder(alone: Sequence[Micro], second: Sequence[Micro], saved: int) -> str:
    """Where a leg left the order of the samples, in words that are the same for the same cause."""
    if not second:
        return "trains on nothing more"
    ids, found = _ids(alone), _ids(second)
    if found[0] not in ids:
        return "goes on with samples in an order that the run alone never has"
    at = ids.index(found[0])
    if at != saved:
        return "goes on at another place than the one saved"
    same = next((i for i, pair in enumerate(zip(found, ids[at:], strict=False)) if pair[0] != pair[1]), len(found))
    if same < len(found):
        return "goes on in the right place, and later leaves the order"
    return f"goes on in the right place, and ends too {'late' if len(found) > len(ids) - at else 'early'}"
