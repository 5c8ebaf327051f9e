"""The benchmarks keep working: they import, measure, and report in one place. What they find is not tested."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import imports, results
from bench.all import MORE, SCRIPTS
from bench.harness import Bench, Skip, Target, Whole, attempt, measure
from bench.measure import Span, Timing, in_situ

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def same_threads():
    """A benchmark sets the number of threads; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(monkeypatch, capsys, name: str, *arguments: str) -> list[dict]:
    """The JSON lines of a benchmark's quick run in this process."""
    monkeypatch.setattr(sys, "argv", [name, "--quick", *arguments])
    importlib.import_module(f"bench.{name}").main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("name", [*SCRIPTS, *MORE])
def test_a_benchmark_asks_a_question_and_imports_without_its_peers(name):
    """Its docstring starts with the question it answers; whoever lacks a peer can still run it."""
    path = BENCH / f"{name}.py"
    if not path.exists():
        pytest.skip("not written yet")
    question = ast.get_docstring(ast.parse(path.read_text()))
    assert question is not None
    assert question.partition("\n\n")[0].rstrip().endswith("?")
    assert callable(importlib.import_module(f"bench.{name}").main)


def test_make_bench_knows_every_benchmark():
    """A file that can be run is one that ``python -m bench.all`` runs."""
    runnable = {path.stem for path in BENCH.glob("*.py") if '\nif __name__ == "__main__"' in path.read_text()}
    assert runnable <= {*SCRIPTS, *MORE, "all"}


@pytest.mark.parametrize(
    ("name", "arguments"), [("step", ["--part", "MLP 26k"]), ("gradient", ["--part", "MLP 26k"]), ("ensemble", [])]
)
def test_a_quick_run_measures_and_judges(monkeypatch, capsys, name, arguments):
    """Every result is a line of JSON with the machine; our cases are measured, and targets have verdicts."""
    lines = run(monkeypatch, capsys, name, *arguments)
    assert all(line["bench"] == name and line["machine"]["torch"] == torch.__version__ for line in lines)
    assert not [line for line in lines if "skipped" in line]
    assert all(line["us"] > 0 for line in lines if "us" in line)
    assert {line["verdict"] for line in lines if "target" in line} <= {"met", "missed", "not measured", "reported"}


def test_an_import_is_timed_in_a_process_that_knows_only_what_came_before():
    """The clock starts after the one and ends with the other; what fails there is an error here."""
    span = imports.fresh("import sys", "import json; sys.modules['json.decoder']")
    assert 0 < span.wall < 60
    assert span.iterations == 1
    with pytest.raises(subprocess.CalledProcessError):
        imports.fresh("import sys", "sys.modules['torch']")


def test_ratios_are_taken_within_rounds():
    """A machine that is twice as slow in one round changes no ratio."""
    timing = Timing(["a", "b", "idle"])
    for slowness in (1, 2, 1):
        timing.add("a", Span(3e-6 * slowness, 3e-6 * slowness, 1))
        timing.add("b", Span(2e-6 * slowness, 4e-6 * slowness, 2))
        timing.add("idle", Span(0.0, 0.0, 1))
    assert timing.ratio("a", "b") == pytest.approx(3)
    assert timing.ratio("a", "b", "cpu") == pytest.approx(1.5)
    assert timing.ratio("a", "b", above="idle") == pytest.approx(3)
    assert timing.excess("a", "b") == pytest.approx(2)
    assert timing.ratio("a", "unknown") is None


def test_cases_take_turns():
    """Each round runs every case once, and each case is first at some time."""
    order: list[str] = []

    def case(name: str) -> Whole:
        def function() -> Span:
            order.append(name)
            return Span(1.0, 1.0, 1)

        return Whole(function)

    measure({"a": case("a"), "b": case("b"), "c": Skip("away")}, rounds=2, chunk=0.0)
    assert order == ["a", "b", "a", "b", "b", "a"]  # the first two warm up


def test_parts_are_measured_between_two_iterations():
    """Each call of a part follows a call of the whole, so that it finds the caches as in training."""
    order: list[str] = []
    found = in_situ(lambda: order.append("whole"), {"a": lambda: order.append("a")}, seconds=0.0)
    assert order == ["whole", "whole", "a"]  # the first stands before the empty call, whose time is subtracted
    assert found.keys() == {"a"}


def test_what_cannot_be_made_is_a_row_with_a_reason():
    """Without the folders of this machine in it."""
    case = attempt(lambda: (_ for _ in ()).throw(ImportError("cannot import name 'x' from 'y' (/home/me/y.py)")))
    assert case == Skip("ImportError: cannot import name 'x' from 'y' (y.py)")


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("", 0.9, at_most=0.9), "met"),
        (Target("", 0.91, at_most=0.9), "missed"),
        (Target("", 0.9, at_least=1.0), "missed"),
        (Target("", 1.0, at_least=1.0), "met"),
        (Target("", None, at_most=1.0), "not measured"),
        (Target("", 1.0), "reported"),
    ],
)
def test_a_target_is_met_up_to_its_limit(target, verdict):
    assert target.verdict == verdict


def test_a_section_is_replaced_alone_and_the_targets_of_all_stand_on_top(tmp_path):
    """Running one benchmark leaves what the others have found."""
    path = tmp_path / "RESULTS.md"
    rows = {name: f"| {name} is fast | <= 1 | 0.5 | met |" for name in ("one", "two", "three")}
    sections = {name: f"## {name}\n\n{results.TARGETS_HEAD}\n{row}\n\ntext of {name}" for name, row in rows.items()}
    results.replace_section("one", sections["one"], path)
    results.replace_section("two", sections["two"], path)
    results.replace_section("one", sections["three"], path)
    text = path.read_text()
    assert "text of one" not in text
    assert text.count("text of two") == text.count("text of three") == 1
    assert results.target_rows(text) == [rows["three"], rows["two"]]


def test_a_quick_run_writes_nothing(monkeypatch, capsys):
    """The results in the repository are those of whole runs."""
    monkeypatch.setattr(results, "replace_section", pytest.fail)
    bench = Bench("nothing", "Is anything written?", ["--quick"])
    bench.target("nothing", 0.0, at_most=1.0)
    bench.finish()
    assert '"verdict": "met"' in capsys.readouterr().out
