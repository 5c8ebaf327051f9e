"""What pytest loads in every project where helios_fn is installed: a marker, two settings, a fixture, and no torch.

It is installed beside ``helios_fn``, because whatever is imported from inside of that imports torch first. The plugin,
`helios_fn.testing.plugin`, is loaded when a marker, the configuration or the environment asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

_PLUGIN = "helios_fn.testing.plugin"
_SETTINGS = ("helios_fn_deterministic", "helios_fn_threads")
_MARKER = (
    "helios_fn(job, laws=('step', 'resume'), stops=None, examples=None, workers=None, processes=None): "
    "check these laws on a training job; `python -m helios_fn.testing --help` lists them"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings in pytest's configuration."""
    deterministic, threads = _SETTINGS
    parser.addini(deterministic, "refuse non-deterministic kernels in all tests", type="bool", default=False)
    parser.addini(threads, "how many threads kernels on the CPU use in all tests", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line("markers", _MARKER)
    if os.environ.get("HELIOS_FN_PROFILE") or any(map(config.getini, _SETTINGS)):
        _plugin(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each law of the marker."""
    marker = metafunc.definition.get_closest_marker("helios_fn")
    if marker is not None:
        _plugin(metafunc.config).make_tests(metafunc, marker)


@pytest.fixture
def helios_fn_deterministic() -> Iterator[Any]:
    """One test with everything pinned, see `helios_fn.testing.deterministic`; the value says what is."""
    from helios_fn.testing import deterministic

    with deterministic() as pinned:
        yield pinned


def _plugin(config: pytest.Config) -> Any:
    """The plugin, registered once, whoever asks."""
    config.pluginmanager.import_plugin(_PLUGIN)
    return config.pluginmanager.get_plugin(_PLUGIN)
