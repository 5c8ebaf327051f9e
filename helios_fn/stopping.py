"""Ready-made answers to ``should_stop``: functions of the state alone, so every start and every process agrees.

    run(step, state, loader, cfg, should_stop=stopping.metric("validation/accuracy", at_least=0.98))

An epoch without improvement is `EarlyStop`'s matter, a limit of time ``RunConfig.max_time``'s, and a loss that is
not finite ``RunConfig.non_finite``'s. A predicate of your own is any function ``state -> bool | str``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .patterns import closest
from .state import TrainState

ShouldStop = Callable[[TrainState], bool | str]
"""``False`` to go on; ``True``, or the reason in words, to stop."""


def metric(name: str, *, at_least: float | None = None, at_most: float | None = None, every: int = 1) -> ShouldStop:
    """Stop when a metric has reached a value.

    NaN has reached nothing. To give up a run that diverges, ask for what must not be:
    ``metric("loss", at_least=1e3)``.

    Args:
        name: as the step writes it (``"loss"``), or with ``validation/`` before it, as ``validate`` returns it.
        at_least: stop at this value or above it.
        at_most: stop at this value or below it; with both, in between.
        every: look only at iterations that this number divides: a look makes the host wait for the device. The
            validation's metrics are on the host, and looked at whenever asked.

    Raises:
        ValueError: there is no bound, or one that nothing reaches; in the run, if there is no such metric.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"what must {name!r} reach? Set at_least or at_most")
    lower, upper = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    if not lower <= upper:
        raise ValueError(f"no value is at least {at_least} and at most {at_most}")
    if type(every) is not int or every < 1:
        raise ValueError(f"every must be an integer of at least 1, got {every!r}")
    wanted = " and ".join(
        text
        for text, bound in ((f"at least {at_least}", at_least), (f"at most {at_most}", at_most))
        if bound is not None
    )

    def reached(state: TrainState) -> bool | str:
        value = _value(state, name, every)
        return f"{name} is {value:.6g}, {wanted}" if value is not None and lower <= value <= upper else False

    return reached


def any_of(*predicates: ShouldStop) -> ShouldStop:
    """Stop as soon as one of them says so, in the words of the first that does."""
    _check(predicates)

    def either(state: TrainState) -> bool | str:
        return next((answer for answer in (predicate(state) for predicate in predicates) if answer), False)

    return either


def all_of(*predicates: ShouldStop) -> ShouldStop:
    """Stop when all of them say so in the same iteration; the words of all are kept."""
    _check(predicates)

    def together(state: TrainState) -> bool | str:
        answers = []
        for predicate in predicates:
            answers.append(predicate(state))
            if not answers[-1]:
                return False
        return "; ".join(answer for answer in answers if isinstance(answer, str)) or True

    return together


def _check(predicates: tuple[ShouldStop, ...]) -> None:
    if not predicates:
        raise ValueError("hand over at least one predicate")
    for predicate in predicates:
        if not callable(predicate):
            raise TypeError(f"a predicate is a function of the state, got {predicate!r}")


def _value(state: TrainState, name: str, every: int) -> float | None:
    """The metric as it stands; ``None`` where it is not to be looked at."""
    kind, _, rest = name.partition("/")
    if kind == "validation" and name not in state.metrics:
        found = state.validation.metrics
        if not found and state.validation.cycles == 0:
            return None
        name = rest
    elif state.counters.iteration % every:
        return None
    else:
        found = state.metrics
    if name not in found:
        raise ValueError(f"there is no metric {name!r} to stop by; close to it: {closest(name, sorted(found))}")
    return float(found[name])
