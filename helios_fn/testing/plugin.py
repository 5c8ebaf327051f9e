"""A pytest plugin: every law of a job as a test of its own.

In ``conftest.py``::

    pytest_plugins = ["helios_fn.testing.plugin"]

and in a test file::

    @pytest.mark.helios_fn(job="my_project.train:job", laws=["step", "resume", "workers"])
    def test_training(law):
        law.check()

which gives the tests ``test_training[step]``, ``test_training[resume]`` and ``test_training[workers]``. The laws are
``step``, ``resume``, ``workers``, ``processes`` (really killed) and ``world``; without ``laws``, the first two. The
marker also takes ``workers=(0, 2)`` and ``processes=(1, 2)``, the numbers to compare; ``job`` may be a function too.

The environment variable HELIOS_FN_PROFILE (``dev``, ``ci``, ``nightly``) says how hard to look; where it is set,
Hypothesis gets its settings from it too. Nothing is pinned unless it is asked for: a law should hold under the
settings that you train with. The fixture ``deterministic`` pins for one test what `helios_fn.testing.deterministic`
does; in pytest's configuration, ``helios_fn_deterministic = true`` does it for all of them, and
``helios_fn_threads = 1`` sets the threads. The header of the report says what holds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..errors import PurityError
from .law import Law, laws_of
from .preset import Pinned, deterministic
from .profiles import PROFILES, VARIABLE, chosen, register
from .spec import NoSuchJob
from .verdicts import LawBroken

_MARKER = "helios_fn(job, laws=('step', 'resume'), workers=None, processes=None): check these laws on a training job"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings in pytest's configuration."""
    parser.addini(
        "helios_fn_deterministic", "refuse non-deterministic kernels in all tests", type="bool", default=False
    )
    parser.addini("helios_fn_threads", "how many threads kernels on the CPU use in all tests", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker, choose the profile, and pin what is to be pinned until the end."""
    config.addinivalue_line("markers", _MARKER)
    try:
        profile, threads = chosen(), _threads(config.getini("helios_fn_threads"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if os.environ.get(VARIABLE) and importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        register()
        settings.load_profile(f"helios_fn-{profile.name}")
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


def pytest_report_header(config: pytest.Config) -> str:
    """What holds in this session."""
    return f"helios_fn: profile {chosen().name} of {', '.join(PROFILES)}; {Pinned.now()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each law of the marker."""
    marker = metafunc.definition.get_closest_marker("helios_fn")
    if marker is None:
        return
    name = metafunc.definition.nodeid
    if "law" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{name} is marked helios_fn, so let it take the argument `law` and call law.check()")
    try:
        laws = _laws(*marker.args, **marker.kwargs)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"{name}: {str(error).replace('_laws()', 'the marker helios_fn')}") from None
    metafunc.parametrize("law", [_Reported(law) for law in laws], ids=[law.name for law in laws])


def _laws(job: Any, laws: Any = ("step", "resume"), *, workers: Any = None, processes: Any = None) -> list[Law]:
    return laws_of(job, laws, chosen(), workers=workers, processes=processes)


class _Reported:
    """A law whose verdict is a report without the traceback of its checker."""

    def __init__(self, law: Law) -> None:
        self._law = law
        self.name = law.name

    def check(self) -> None:
        """`Law.check`; a broken law fails the test with the diagnosis alone."""
        try:
            self._law.check()
        except (LawBroken, PurityError) as error:
            pytest.fail(f"the law {self.name!r} is broken: {error}", pytrace=False)
        except NoSuchJob as error:
            pytest.fail(str(error), pytrace=False)


@pytest.fixture
def law(request: pytest.FixtureRequest) -> Any:
    """The law to check; filled in by the marker."""
    raise pytest.UsageError(
        f'{request.node.nodeid} takes `law`, but has no marker: add @pytest.mark.helios_fn(job="my_project.train:job")'
    )


@pytest.fixture(name="deterministic")
def _deterministic() -> Iterator[Pinned]:
    """One test with everything pinned, see `helios_fn.testing.deterministic`."""
    with deterministic() as pinned:
        yield pinned
