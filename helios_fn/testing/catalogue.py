"""All laws by name: the one list that the command line and the pytest plugin share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from ..data import Loader
from .accumulation import check_accumulation
from .counting import check_counting
from .examples import needed_hypothesis
from .first import check_first_step
from .interrupt import Stops
from .laws import check_resume, check_workers
from .observation import check_observation
from .order import check_order
from .processes import check_resume_processes
from .round_trip import check_round_trip
from .spec import Subject
from .trace import Job
from .validation import check_validation
from .verdicts import LawDoesNotApply
from .world import check_world, unshared

_WORLDS = (1, 2, 4)
_ORDERS_OF_EVENTS = 20


def _step(subject: Subject, *, examples: int | None = None) -> None:
    """On the first batch (and generated ones) the step is pure, deterministic and finite."""
    check_first_step(subject.job(), examples)


def _resume(subject: Subject, *, stops: Stops | None = None, examples: int | None = None) -> None:
    """Stopped anywhere and resumed in this process, a run gives the same bits."""
    job = subject.job()
    if stops is not None or examples is None:
        check_resume(job.step, job.state, job.loader, job.cfg, stops=stops, **job.keywords)
    if examples is not None:
        check_resume(job.step, job.state, job.loader, job.cfg, examples=examples, **job.keywords)


def _processes(subject: Subject, *, stops: Stops | None = None) -> None:
    """The same, really killed, and resumed by fresh processes."""
    check_resume_processes(subject.spec(), stops=stops)


def _workers(subject: Subject, *, workers: Sequence[int] | None = None, examples: int | None = None) -> None:
    """The number of loader workers changes no bit."""
    job = subject.job()
    numbers = (0, 1, 2) if workers is None else workers
    check_workers(job.step, job.state, _by_workers(job), job.cfg, workers=numbers, examples=examples, **job.keywords)


def _world(subject: Subject, *, processes: Sequence[int] | None = None, examples: int | None = None) -> None:
    """The number of processes that share the work changes no bit."""
    spec, cfg = subject.spec(), subject.job().cfg
    numbers = [each for each in _WORLDS if each <= (cfg.micro_batches or 1)] if processes is None else processes
    reason = unshared(cfg)
    if reason is not None:
        raise LawDoesNotApply(reason)
    check_world(spec, processes=numbers)
    if examples is not None:  # not instead: these keep their processes, and so what is kept in one is not lost
        check_world(spec, processes=numbers, examples=examples)


def _round_trip(subject: Subject, *, examples: int | None = None) -> None:
    """What is saved is loaded again, bit for bit."""
    check_round_trip(subject.job().initial_state(), examples=examples)


def _order(subject: Subject, *, workers: Sequence[int] | None = None, examples: int | None = None) -> None:
    """The loader gives the same batches from any place, each sample once in an epoch."""
    check_order(subject.job().loader, workers=(0, 2) if workers is None else workers, examples=examples)


def _counting(subject: Subject, *, examples: int | None = None) -> None:
    """Cursor, counters and logs say what has been done."""
    job = subject.job()
    check_counting(job.step, job.state, job.loader, job.cfg, examples=examples, **job.keywords)


def _observation(subject: Subject, *, examples: int | None = None) -> None:
    """Logging, observers, checkpoints and validation change no bit of what is trained."""
    job = subject.job()
    check_observation(job.step, job.state, job.loader, job.cfg, examples=examples, **job.keywords)


def _validation(subject: Subject, *, examples: int | None = None) -> None:
    """Validation only reads, and the order of its samples does not matter."""
    job = subject.job()
    if job.keywords.get("validate") is None:
        raise LawDoesNotApply("the job has no validate")
    check_validation(job.keywords["validate"], job.state, examples=examples)


def _accumulation(subject: Subject, *, examples: int | None = None) -> None:
    """Micro-batches make the update of one batch of their union."""
    job = subject.job()
    check_accumulation(job.step, job.state, job.loader, job.cfg, examples=examples)


def _machine(
    subject: Subject,
    *,
    workers: Sequence[int] | None = None,
    processes: Sequence[int] | None = None,
    examples: int | None = None,
) -> None:
    """In any order of events (train, crash, leave, restart, change the world) the run is where a plain model says."""
    try:
        needed_hypothesis()
    except ImportError as error:
        raise LawDoesNotApply(f"its events are all generated: {error}") from error
    from .machine import check_machine

    job, examples = subject.job(), _ORDERS_OF_EVENTS if examples is None else examples
    reason = None if processes is None else unshared(job.cfg)
    if reason is not None:
        raise LawDoesNotApply(f"its world cannot be changed: {reason}")
    check_machine(
        job if processes is None else subject.spec(),
        make_loader=None if workers is None else _by_workers(job),
        workers=(0, 1, 2) if workers is None else workers,
        worlds=(1,) if processes is None else processes,
        examples=examples,
    )


def _by_workers(job: Job) -> Callable[[int], Loader]:
    loader = job.new_loader()
    if not isinstance(loader, Loader):
        raise LawDoesNotApply(
            f"the workers of an hf.Loader can be changed, and this is a {type(loader).__name__}: call "
            "helios_fn.testing.check_workers with a make_loader of your own"
        )
    return lambda count: loader.replace(workers=count)


LAWS: dict[str, Callable[..., None]] = {
    "step": _step,
    "resume": _resume,
    "processes": _processes,
    "workers": _workers,
    "world": _world,
    "round_trip": _round_trip,
    "order": _order,
    "counting": _counting,
    "observation": _observation,
    "validation": _validation,
    "accumulation": _accumulation,
    "machine": _machine,
}
"""What checks each law on a `Subject`; its docstring is the law in words, its keywords are the options it takes."""


def options_of(name: str) -> list[str]:
    """The options that a law takes: of ``stops``, ``examples``, ``workers`` and ``processes``."""
    return [*inspect.signature(LAWS[name]).parameters][1:]


def in_words() -> str:
    """All laws, a line each, with the options that they take."""
    return "\n".join(
        f"  {name:13} {law.__doc__}" + "".join(f" [--{option}]" for option in options_of(name))
        for name, law in LAWS.items()
    )
