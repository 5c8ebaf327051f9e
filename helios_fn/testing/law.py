"""One law and one job: what a test item of the pytest plugin checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..data import Loader
from .first import check_first_step
from .interrupt import usual_stops
from .laws import check_resume, check_workers
from .processes import check_resume_processes
from .profiles import Profile
from .spec import load_job
from .trace import Job, run_with
from .world import check_world

_PROCESS_STOPS = 4


@dataclasses.dataclass(frozen=True)
class Law:
    """A law to be checked on a job.

    Attributes:
        name: one of `LAWS`.
        source: ``"module:function"`` or a function; either way, called for a fresh `Job`.
        profile: how hard to look.
        options: keywords of the check, such as ``{"workers": (0, 2)}`` or ``{"processes": (1, 2)}``.
    """

    name: str
    source: str | Callable[[], Job]
    profile: Profile
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def job(self) -> Job:
        """The job, made anew."""
        return load_job(self.source) if isinstance(self.source, str) else self.source()

    def check(self) -> None:
        """Check it.

        Raises:
            LawBroken, PurityError: it does not hold; the message says where first, and the likely causes.
            JobFailed: the job fails by itself.
            ValueError: the law cannot be checked on such a job.
        """
        LAWS[self.name](self)

    def spec(self) -> str:
        """Where other processes find the job.

        Raises:
            ValueError: only this one knows it.
        """
        if not isinstance(self.source, str):
            raise ValueError(
                f"the law {self.name!r} runs the job in other processes, which must find it: name it as "
                'job="my_project.train:job"'
            )
        return self.source


def _step(law: Law) -> None:
    check_first_step(law.job())


def _resume(law: Law) -> None:
    job = law.job()
    check_resume(job.step, job.state, job.loader, job.cfg, stops=law.profile.stops_of(job), **job.keywords)


def _workers(law: Law) -> None:
    job = law.job()
    loader = job.new_loader()
    if not isinstance(loader, Loader):
        raise ValueError(
            f"the law 'workers' can change the workers of an hf.Loader, and this is a {type(loader).__name__}: "
            "call helios_fn.testing.check_workers with a make_loader of your own"
        )
    check_workers(
        job.step, job.state, lambda count: loader.replace(workers=count), job.cfg, **law.options, **job.keywords
    )


def _processes(law: Law) -> None:
    if law.profile.stops is None:
        check_resume_processes(law.spec(), stops=usual_stops(len(run_with(law.job(), []).batches)))
    else:
        check_resume_processes(law.spec())


def _world(law: Law) -> None:
    check_world(law.spec(), **law.options)


LAWS: dict[str, Callable[[Law], None]] = {
    "step": _step,
    "resume": _resume,
    "workers": _workers,
    "processes": _processes,
    "world": _world,
}
"""What can be asked for, and what checks it: on the first batch; stopped and resumed in this process; with other
numbers of loader workers; killed and resumed in processes of its own; shared by several processes."""

_OPTIONS = {"workers": "workers", "world": "processes"}


def laws_of(
    job: str | Callable[[], Job],
    laws: Sequence[str],
    profile: Profile,
    *,
    workers: Sequence[int] | None = None,
    processes: Sequence[int] | None = None,
) -> list[Law]:
    """The laws by name, in order.

    Raises:
        TypeError: ``job`` is neither a name nor a function, or ``laws`` is no list of names.
        ValueError: there is no such law.
    """
    if not isinstance(job, str) and not callable(job):
        raise TypeError(f'job must be "module:function" or a function that returns a Job, got {type(job).__name__}')
    if isinstance(laws, str) or not laws:
        raise TypeError(f"laws must list the laws to check, such as ['step', 'resume'], got {laws!r}")
    for name in laws:
        if name not in LAWS:
            raise ValueError(f"there is no law called {name!r}: choose from {', '.join(LAWS)}")
    given = {"workers": workers, "processes": processes}
    chosen = {name: option for name, option in _OPTIONS.items() if given[option] is not None}
    return [Law(name, job, profile, {chosen[name]: given[chosen[name]]} if name in chosen else {}) for name in laws]
