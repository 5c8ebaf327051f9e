"""The law of validation: it depends on the state alone, writes nothing, and no order of its samples matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import random, tree
from ..data import Loader
from ..driver import Validator
from .examples import check_count, for_all
from .look import look_at_functions
from .values import differences
from .verdicts import JobFailed, LawBroken

_TOLERANCE = 1e-4
_WRITES = "It must read only: clone what you change, and evaluate in eval mode (model.eval), without an update"
_MEMORY = """Look at the validate function and its loader:
  - it keeps something in the process: an average, a counter, a cache, a shuffled list
  - it draws from a Generator of its own, the clock or os.urandom
  - a kernel is not deterministic: try torch.use_deterministic_algorithms(True)"""
_WEIGHTS = """Look at the weight that eval_fn returns: hf.Aux(metrics={...}, weight=len(batch)) makes a mean over
samples; without it the last batch, which is shorter, counts as much as the others. A metric that is no mean over
samples, such as the area under a curve, depends on how they are batched: name it in except_for"""


def check_validation(
    validate: Callable[[Any], Mapping[str, Any]],
    state: Any,
    *,
    except_for: Sequence[str] = (),
    examples: int | None = None,
) -> None:
    """Check that ``validate`` is a function of the state that writes nothing, and that no order matters to it.

    It is called as the driver does, in a keyed scope, and must give the same bits twice, leave the state and the
    global generators as they were, and, where it is a `Validator` of a `Loader`, find the same means (to a relative
    10^-4) when the samples come in another order, so that other ones share the shorter last batch. That last part
    is left out where validation draws noise, since other batches then have other noise.

    Args:
        validate: as for `helios_fn.run`.
        state: the state to evaluate, or a function that makes it.
        except_for: names of metrics that are no means over samples, and may depend on the order.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about 200 in a second
            for a small model) of orders.

    Raises:
        LawBroken: says what validation writes to or depends on, and the likely causes.
        JobFailed: validation itself fails.
    """
    check_count(examples)
    state = state() if callable(state) else state
    try:
        _check_reads_only(validate, state)
        _check_order(validate, state, except_for, examples)
    except LawBroken as error:
        lines = look_at_functions({"validate": validate}, lambda: _called(validate, state))
        if not lines:
            raise
        raise LawBroken("\n  - ".join([f"{error}\nA closer look:", *lines])) from error.__cause__


def _check_reads_only(validate: Callable[[Any], Any], state: Any) -> None:
    before = tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
    ambient = random.ambient_fingerprint()
    first = _called(validate, state)
    drawn = random.drawn(ambient, random.ambient_fingerprint())
    written = differences(before, state)
    if written:
        raise LawBroken(f"validate wrote to the state at {written[0]}. {_WRITES}")
    if drawn:
        raise LawBroken(f"validate left {', '.join(drawn)} in another state: does it seed a global generator?")
    second = _called(validate, state)
    for name in [*first, *(name for name in second if name not in first)]:
        if repr(first.get(name)) != repr(second.get(name)):
            raise LawBroken(
                f"validate gives {name!r} = {first.get(name)!r}, and {second.get(name)!r} when it is called again with "
                f"the same state\n{_MEMORY}"
            )


def _check_order(validate: Any, state: Any, except_for: Sequence[str], examples: int | None) -> None:
    source = validate.source if isinstance(validate, Validator) else None
    if not isinstance(source, Loader):
        return
    length = _samples(source)
    if length < 2 or source.batch_size is None:
        return
    other_noise = state.replace(key=random.fold_in(state.key, "other noise"))
    whole = _called(_in_order(validate, list(range(length))), state)
    if _called(_in_order(validate, list(range(length))), other_noise) != whole:
        return

    def holds(order: Sequence[int]) -> None:
        found = _called(_in_order(validate, list(order)), state)
        for name, value in whole.items():
            if name not in except_for and not math.isclose(value, found[name], rel_tol=_TOLERANCE, abs_tol=1e-6):
                raise LawBroken(
                    f"validate gives {name!r} = {value!r}, and {found[name]!r} when the same {length} samples come in "
                    f"another order, in batches of {source.batch_size}\n{_WEIGHTS}"
                )

    if examples is None:
        holds(range(length - 1, -1, -1))
    else:
        from hypothesis import strategies as st

        for_all(st.permutations(range(length)), holds, examples)


def _samples(loader: Loader) -> int:
    length = len(loader.dataset) if not isinstance(loader.dataset, dict) else 0
    return length if loader.samples is None else min(length, loader.samples)


def _in_order(validate: Validator, order: list[int]) -> Validator:
    assert isinstance(validate.source, Loader)
    return validate.over(
        validate.source.replace(
            order=lambda key, epoch, n: order, shuffle=None, workers=0, drop_last=False, batches=None
        )
    )


def _called(validate: Callable[[Any], Any], state: Any) -> dict[str, float]:
    try:
        with random.scope(random.fold_in(state.key, "validation", state.counters.iteration)):
            return {str(name): float(value) for name, value in validate(state).items()}
    except Exception as error:
        raise JobFailed(f"validation itself failed: {type(error).__name__}: {error}") from error
