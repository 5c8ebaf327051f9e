"""The pytest plugin: laws as tests, profiles, pins, and what the user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch

import helios_fn as hf
from helios_fn.testing import LawDoesNotApply, Pinned, Stop, deterministic, profiles
from helios_fn.testing.catalogue import LAWS, options_of
from helios_fn.testing.law import laws_of

from .test_testing import job

pytest_plugins = ["pytester"]

ENTRY = Path(hf.__file__).parent / "testing" / "entry"  # where its own folder is beside helios_fn when it is installed

PRELUDE = """
    import itertools
    import pytest
    import torch
    import helios_fn as hf
    from tests.unit.test_testing import OPTIMIZER, job, loss_fn

    plain = hf.make_step(loss_fn, OPTIMIZER)
    calls = itertools.count()

    def counting(state, batch):
        return plain(state, {**batch, "y": batch["y"] + next(calls)})

    def good():
        return job(total=3)

    def bad():
        return job(counting, total=3)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on a file, in this process, with what an installed helios_fn adds to it; returns what it printed."""
    monkeypatch.delenv(profiles.VARIABLE, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.syspath_prepend(ENTRY)

    def run(code: str, *arguments: str, ini: str = "", plugins: tuple[str, ...] = ("_helios_fn_pytest",)):
        arguments = (*(f"-p{name}" for name in plugins), *arguments)
        pytester.makeini(f"[pytest]\n{textwrap.dedent(ini)}")
        pytester.makepyfile(textwrap.dedent(PRELUDE) + textwrap.dedent(code))
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", *arguments)

    return run


def test_every_law_is_a_test_with_a_verdict_of_its_own(run):
    """Three lines of the user's; what is broken is told without a traceback, and the laws that hold pass."""
    result = run("""
        @pytest.mark.helios_fn(job=good, laws=["step", "resume", "workers"], workers=(0,))
        def test_good(law):
            law.check()

        @pytest.mark.helios_fn(job=bad)
        def test_bad(law):
            law.check()
    """, "-v")  # fmt: skip
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_good?workers? PASSED*",
            "the law 'step' is broken: two calls of the step on the same input differ in*",
            "the law 'resume' is broken: a run resumed after crash after iteration 1 differs*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("@pytest.mark.helios_fn(job=good, laws=['steps'])\ndef test_a(law): pass", "no law called 'steps'"),
        ("@pytest.mark.helios_fn(job=good, laws='step')\ndef test_a(law): pass", "laws must list the laws"),
        ("@pytest.mark.helios_fn(laws=['step'])\ndef test_a(law): pass", "missing 1 required positional argument"),
        ("@pytest.mark.helios_fn(job=3)\ndef test_a(law): pass", "job must be \"module:function\""),
        ("@pytest.mark.helios_fn(job=good)\ndef test_a(): pass", "let it take the argument `law`"),
        ("@pytest.mark.helios_fn(job=good, workers=(0, 1))\ndef test_a(law): pass", "resume takes workers; these do"),
        ("@pytest.mark.helios_fn(job='no_such:job')\ndef test_a(law): law.check()", "there is no module 'no_such'"),
        ("@pytest.mark.helios_fn(job=good, laws=['world'])\ndef test_a(law): law.check()", "name it as job="),
    ],
)  # fmt: skip
def test_a_marker_that_cannot_be_meant_is_explained(run, code, told):
    """The test is named, and what to write instead."""
    result = run(code)
    assert result.ret != 0
    assert told in result.stdout.str() + result.stderr.str()


def test_the_header_says_what_is_pinned_and_the_end_puts_it_back(run):
    """The settings of pytest's configuration hold for the session alone."""
    before = Pinned.now()
    result = run("""
        def test_pinned():
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 2
    """, ini="helios_fn_deterministic = true\nhelios_fn_threads = 2")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["helios_fn: profile dev of dev, ci, nightly; torch * 2 threads, deterministic algorithms on*"]
    )
    assert Pinned.now() == before


@pytest.mark.parametrize(("ini", "profile", "told"), [("helios_fn_threads = two", "ci", "'two'"), ("", "cd", "'cd'")])
def test_settings_that_cannot_be_meant_are_refused(run, monkeypatch, ini, profile, told):
    """Before any test is run."""
    monkeypatch.setenv(profiles.VARIABLE, profile)
    result = run("def test_a(): pass", ini=ini)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr.str()


def test_the_profile_decides_how_many_examples_are_tried(run, monkeypatch):
    """In the profile for continuous integration the same ones each time."""
    from hypothesis import settings

    monkeypatch.setenv(profiles.VARIABLE, "nightly")
    outer = settings._current_profile
    try:
        result = run("""
            from hypothesis import settings
            def test_settings(helios_fn_deterministic):
                assert settings().max_examples == 1000
                assert settings.get_profile("helios_fn-ci").derandomize
                assert helios_fn_deterministic.algorithms and torch.are_deterministic_algorithms_enabled()
        """)  # fmt: skip
    finally:
        settings.load_profile(outer)
    result.assert_outcomes(passed=1)


def test_a_nightly_run_stops_everywhere_in_every_way():
    """After each iteration but the last; a quick one at a few places, alone and together."""
    assert len(profiles.PROFILES["nightly"].stops_of(3)) == 8
    assert profiles.PROFILES["dev"].stops_of(5)[-1] == [Stop(1), Stop(3, "signal"), Stop(4, "leave")]


def test_workers_of_a_foreign_loader_are_not_guessed():
    """The error says what to call instead."""
    found = job()
    (law,) = laws_of(lambda: type(found)(found.step, found.state, [], found.cfg), ["workers"], {})
    with pytest.raises(LawDoesNotApply, match="make_loader of your own"):
        law.check()


def test_all_laws_are_asked_for_by_one_word():
    """Each gets the options that it takes, those of the profile where nothing else was said."""
    laws = laws_of("train:job", "all", {"examples": 3, "stops": None}, profiles.PROFILES["ci"].options)
    assert [law.name for law in laws] == [*LAWS]
    taken = {law.name: law.options for law in laws}
    assert all(taken[name].get("examples", 3) == 3 for name in LAWS)
    assert len(taken["resume"]["stops"](20)) == 9
    assert "examples" not in taken["processes"]
    assert profiles.PROFILES["ci"].options("world") == {"examples": 5}
    assert profiles.PROFILES["dev"].options("world") == {"examples": None}
    assert {option for name in LAWS for option in options_of(name)} == {"stops", "examples", "workers", "processes"}


def test_what_is_pinned_is_put_back():
    """Also when it nests, and after an error."""
    before = Pinned.now(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with deterministic(threads=2), deterministic() as pinned:
        assert (pinned.threads, pinned.algorithms, pinned.workspace) == (1, True, ":4096:8")
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic"), deterministic():
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    assert before == (Pinned.now(), os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
    with pytest.raises(ValueError, match="at least 1"), deterministic(threads=0):
        pass


def test_a_law_that_does_not_apply_is_skipped(run):
    """With the reason; no failure, and no success either."""
    result = run("""
        @pytest.mark.helios_fn(job=good, laws=["validation"])
        def test_good(law):
            law.check()
    """)  # fmt: skip
    result.assert_outcomes(skipped=1)


@pytest.mark.parametrize(
    "plugins",
    [
        ("helios_fn.testing.plugin",),
        ("_helios_fn_pytest", "helios_fn.testing.plugin"),
        ("helios_fn.testing.plugin", "_helios_fn_pytest"),
    ],
)
def test_the_plugin_may_be_named_as_well(run, plugins):
    """Whoever names it, and in whatever order, it is there once."""
    run("""
        @pytest.mark.helios_fn(job=good, laws=["step"])
        def test_good(law):
            law.check()
    """, plugins=plugins).assert_outcomes(passed=1)  # fmt: skip


def test_a_project_that_does_not_ask_for_the_plugin_does_not_pay_for_it(tmp_path):
    """What pytest finds by the entry point imports neither torch nor helios_fn; nor does collection."""
    project = tomllib.loads((ENTRY.parents[2] / "pyproject.toml").read_text())["project"]
    ((name, module),) = project["entry-points"]["pytest11"].items()
    assert name == module  # else pytest would load it twice where it is named too
    (tmp_path / "test_a.py").write_text("def test_a(): pass")
    code = f"import sys, pytest; pytest.main(['-q', '-p{module}']); print({{'torch', 'helios_fn'}} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(ENTRY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop(profiles.VARIABLE, None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "1 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()", done.stdout
