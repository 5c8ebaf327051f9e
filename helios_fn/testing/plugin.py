"""A pytest plugin: every law of a job as a test of its own.

Where helios_fn is installed, pytest knows the marker; in a test file::

    @pytest.mark.helios_fn(job="my_project.train:job", laws=["step", "resume", "workers"])
    def test_training(law):
        law.check()

gives the tests ``test_training[step]``, ``test_training[resume]`` and ``test_training[workers]``. ``job`` may be a
function too. ``laws`` are names that ``python -m helios_fn.testing --help`` explains, or ``"all"``; by default
``step`` and ``resume``. A law that says nothing about the job is skipped, with the reason. The marker also takes the
options that laws have: ``stops``, ``examples``, ``workers=(0, 2)`` and ``processes=(1, 2)``, with which the machine
changes the world too.

The environment variable HELIOS_FN_PROFILE (``dev``, ``ci``, ``nightly``) says how hard to look; where it is set,
Hypothesis gets its settings from it too. Nothing is pinned unless it is asked for: a law should hold under the
settings that you train with. The fixture ``helios_fn_deterministic`` pins for one test what
`helios_fn.testing.deterministic` does; in pytest's configuration, ``helios_fn_deterministic = true`` does it for all of
them, and ``helios_fn_threads = 1`` sets the threads. A line before the first test says what holds.

pytest itself loads the small module ``_helios_fn_pytest`` alone, and this one when a marker, the configuration or the
environment asks for it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
import torch

from ..errors import PurityError
from .law import Law, laws_of
from .preset import Pinned, deterministic
from .profiles import PROFILES, VARIABLE, chosen, register
from .spec import NoSuchJob
from .verdicts import LawBroken, LawDoesNotApply

pytest_plugins = ["_helios_fn_pytest"]


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile, and pin what is to be pinned until the end."""
    try:
        profile, threads = chosen(), _threads(config.getini("helios_fn_threads"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if os.environ.get(VARIABLE):
        with contextlib.suppress(ImportError):
            register().load_profile(f"helios_fn-{profile.name}")
    pins = contextlib.ExitStack()
    if config.getini("helios_fn_deterministic"):
        pins.enter_context(deterministic(threads=threads))
    elif threads is not None:
        pins.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    config.add_cleanup(pins.close)


def _threads(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"helios_fn_threads must be a number from 1 on, got {text!r}")
    return int(text)


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    """What holds in this session; only now it is known that somebody has asked."""
    return f"helios_fn: profile {chosen().name} of {', '.join(PROFILES)}; {Pinned.now()}"


def make_tests(metafunc: pytest.Metafunc, marker: pytest.Mark) -> None:
    """A test for each law of the marker."""
    name = metafunc.definition.nodeid
    if "law" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{name} is marked helios_fn, so let it take the argument `law` and call law.check()")
    try:
        laws = _laws(*marker.args, **marker.kwargs)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"{name}: {str(error).replace('_laws()', 'the marker helios_fn')}") from None
    metafunc.parametrize("law", [_Reported(law) for law in laws], ids=[law.name for law in laws])


def _laws(
    job: Any,
    laws: Any = ("step", "resume"),
    *,
    stops: Any = None,
    examples: Any = None,
    workers: Any = None,
    processes: Any = None,
) -> list[Law]:
    asked = {"stops": stops, "examples": examples, "workers": workers, "processes": processes}
    return laws_of(job, laws, asked, chosen().options)


class _Reported:
    """A law whose verdict is a report without the traceback of its checker."""

    def __init__(self, law: Law) -> None:
        self._law = law
        self.name = law.name

    def check(self) -> None:
        """`Law.check`; a broken law fails the test with the diagnosis alone, and one that does not apply skips it."""
        try:
            self._law.check()
        except (LawBroken, PurityError) as error:
            told = "\n".join([f"the law {self.name!r} is broken: {error}", *getattr(error, "__notes__", [])])
            pytest.fail(told, pytrace=False)
        except LawDoesNotApply as error:
            pytest.skip(f"the law {self.name!r} does not apply: {error}")
        except NoSuchJob as error:
            pytest.fail(str(error), pytrace=False)
