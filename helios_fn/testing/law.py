"""One law and one job: what a test of the pytest plugin checks, and a line of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .catalogue import LAWS, options_of
from .spec import Subject
from .trace import Job


@dataclasses.dataclass(frozen=True)
class Law:
    """A law to be checked on a job.

    Attributes:
        name: one of `LAWS`.
        subject: the job.
        options: keywords of the check, such as ``{"workers": (0, 2)}``.
    """

    name: str
    subject: Subject
    options: Mapping[str, Any]

    def check(self) -> None:
        """Check it.

        Raises:
            LawBroken, PurityError: it does not hold; the message says where first, and the likely causes.
            LawDoesNotApply: it says nothing about such a job; the message says why.
            JobFailed: the job fails by itself.
            ValueError: it cannot be checked so, such as with a stop outside the run.
        """
        LAWS[self.name](self.subject, **self.options)


def names_of(laws: str | Sequence[str]) -> list[str]:
    """The names of laws; ``"all"`` is each of them.

    Raises:
        TypeError: ``laws`` is no list of names.
        ValueError: there is no such law.
    """
    if laws == "all":
        return [*LAWS]
    if isinstance(laws, str) or not laws:
        raise TypeError(f"laws must list the laws to check, such as ['step', 'resume'], or be 'all'; got {laws!r}")
    for name in laws:
        if name not in LAWS:
            raise ValueError(f"there is no law called {name!r}: choose from {', '.join(LAWS)}, or all")
    return [*laws]


def laws_of(
    job: str | Callable[[], Job],
    laws: str | Sequence[str],
    options: Mapping[str, Any],
    by_default: Callable[[str], Mapping[str, Any]] = lambda law: {},
) -> list[Law]:
    """The laws by name, in order, each with the options that it takes.

    Args:
        job: ``"module:function"``, or a function.
        laws: names from `LAWS`, or ``"all"``.
        options: of ``stops``, ``examples``, ``workers`` and ``processes`` those that were asked for; ``None`` is not.
        by_default: for the name of a law, the options that it gets where nothing was asked for.

    Raises:
        TypeError: ``job`` is neither a name nor a function, or ``laws`` is no list of names.
        ValueError: there is no such law, or none of them takes an option.
    """
    if not isinstance(job, str) and not callable(job):
        raise TypeError(f'job must be "module:function" or a function that returns a Job, got {type(job).__name__}')
    names = names_of(laws)
    asked = {option: value for option, value in options.items() if value is not None}
    for option in asked:
        if not any(option in options_of(name) for name in names):
            takers = [name for name in LAWS if option in options_of(name)]
            raise ValueError(f"none of the laws {', '.join(names)} takes {option}; these do: {', '.join(takers)}")
    given = {name: {**by_default(name), **asked} for name in names}
    return [
        Law(name, Subject(job), {option: given[name][option] for option in options_of(name) if option in given[name]})
        for name in names
    ]
