"""The two forms of each law: one quick deterministic check, or generated examples by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from .verdicts import LawBroken

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def check_count(examples: int | None) -> None:
    """Check the keyword ``examples`` that all laws share.

    Raises:
        TypeError: it is neither a number of examples nor ``None``.
        ValueError: it is less than 1.
    """
    if examples is None:
        return
    if type(examples) is not int:
        raise TypeError(
            f"examples must be a number of generated examples, or None for the quick form; got {examples!r}"
        )
    if examples < 1:
        raise ValueError(f"examples must be at least 1, or None for the quick form; got {examples}")


def for_all(strategy: SearchStrategy[T], law: Callable[[T], Any], examples: int) -> None:
    """Check ``law`` on generated values, and show the simplest one that breaks it.

    The other settings of Hypothesis are those of the profile that is loaded; a deadline there is none.

    Raises:
        LawBroken: with the value as a note.
    """
    hypothesis = needed_hypothesis()
    last: list[tuple[T, LawBroken]] = []

    def check(value: T) -> None:
        try:
            law(value)
        except LawBroken as error:
            last[:] = [(value, error)]
            raise

    checks = [check for check in hypothesis.HealthCheck if check.name != "nested_given"]
    # One verdict, the simplest: of several Hypothesis would make a group, which is no LawBroken.
    settings = hypothesis.settings(
        max_examples=examples, deadline=None, suppress_health_check=checks, report_multiple_bugs=False
    )
    try:
        settings(hypothesis.given(strategy)(check))()
    except LawBroken:
        raise
    except Exception as error:
        if not last or not isinstance(error, hypothesis.errors.Flaky):
            raise
        # What is broken by chance is not broken when it is tried again: that is the fault, and no fault of the test.
        value, broken = last[0]
        broken.add_note(f"Falsifying example: {value!r}; run again, the same example gave another result")
        raise broken from None


def needed_hypothesis() -> ModuleType:
    """Hypothesis, imported when it is needed.

    Raises:
        ImportError: it is not installed; says what to install.
    """
    try:
        import hypothesis
        import hypothesis.errors
    except ImportError as error:
        raise ImportError(
            "generated examples need Hypothesis: pip install 'helios-fn[testing]', or leave examples=None"
        ) from error
    return hypothesis
