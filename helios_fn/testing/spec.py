"""Jobs named as ``module:function``, so that a fresh process can make its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from .trace import Job


class NoSuchJob(ValueError):
    """``module:function`` does not lead to a `Job`."""


class Subject(NamedTuple):
    """The job that a law is about.

    Attributes:
        source: ``"module:function"`` or a function; either way, called for a fresh `Job`.
    """

    source: str | Callable[[], Job]

    def job(self) -> Job:
        """The job, made anew."""
        return load_job(self.source) if isinstance(self.source, str) else self.source()

    def spec(self) -> str:
        """Where other processes find the job.

        Raises:
            ValueError: only this one knows it.
        """
        if not isinstance(self.source, str):
            raise ValueError(
                'this law runs the job in other processes, which must find it: name it as job="my_project.train:job"'
            )
        return self.source


def split_spec(spec: str) -> tuple[str, str]:
    """Module and function.

    Raises:
        NoSuchJob: ``spec`` is not of the form ``module:function``.
    """
    module, _, function = spec.partition(":")
    if not (module and function):
        raise NoSuchJob(f"{spec!r} names no function: write MODULE:FUNCTION, such as my_project.train:job")
    return module, function


def load_job(spec: str) -> Job:
    """Import ``module:function`` and call it.

    Raises:
        NoSuchJob: there is no such module or function, or it returns something else than a `Job`.
    """
    job = _find_function(*split_spec(spec))()
    if not isinstance(job, Job):
        raise NoSuchJob(f"{spec} returned {type(job).__name__}: return helios_fn.testing.Job(step, state, loader, cfg)")
    return job


def _find_function(module_name: str, function_name: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # What the user's own module misses is another matter, and shown in full.
        if f"{module_name}.".startswith(f"{error.name}."):
            raise NoSuchJob(f"there is no module {module_name!r}: {error}. Is it on the Python path?") from error
        raise
    try:
        return getattr(module, function_name)
    except AttributeError:
        raise NoSuchJob(f"module {module_name!r} has no {function_name!r}") from None
