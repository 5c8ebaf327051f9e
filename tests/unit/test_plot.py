"""``plot``: curves of runs in characters, and as a picture where there is matplotlib."""

from __future__ import annotations

import io
import math
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.cli import main
from helios_fn.cli.sparkline import ASCII, BLOCKS, levels_for, sparkline
from helios_fn.sinks import JsonLines
from helios_fn.types import Row, RunInfo

from ..strategies import examples


def log(root: Path, folder: str, first: float, name: str = "metrics") -> Path:
    """A run's log of six rows, as `JsonLines` writes it."""
    sink = JsonLines(name=name)
    sink.open(RunInfo("run", "iteration", 6, 1, None, log_dir=root / "logs" / folder), None)
    for i in range(1, 7):
        loss = math.nan if i == 5 else first / i
        sink.write(Row("train", i, i, 0, {"loss": loss, "rate": 0.1}, 0.0, {"step": i / 4}))
        if i % 3 == 0:
            sink.write(Row("validation", i, i, 0, {"loss": 2 * first / i}, 0.0))
    sink.close()
    return root


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs ``plot`` without matplotlib: status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main(["plot", *map(str, arguments)])
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run


def cells(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_a_run_is_a_table_of_curves(tmp_path, call):
    """A line per metric: first, last, least and greatest value, and the curve in characters."""
    assert call(log(tmp_path / "a", "run_x", 6.0)) == (
        0,
        "metric           first  last  min  max  curve\n"
        "train/loss           6     1    1    6  █▄▂▂·▁\n"
        "train/rate         0.1   0.1  0.1  0.1  ▁▁▁▁▁▁\n"
        "validation/loss      4     2    2    4  █▁\n",
        "",
    )
    assert not list(tmp_path.glob("*.png"))


def test_runs_are_told_apart_by_what_they_were_called(tmp_path, call):
    """By the argument; by the place in it where it holds several; by the path where two are alike."""
    a, b = log(tmp_path / "a", "x", 6.0), log(tmp_path / "b", "y", 12.0)
    _, out, _ = call(a, b, "--metric", "train/loss")
    assert [row[:4] for row in cells(out)[1:]] == [["train/loss", "a", "6", "1"], ["train/loss", "b", "12", "2"]]
    log(b, "z", 6.0)
    _, out, _ = call(b, b / "logs" / "z", b / "logs" / "z" / "metrics.jsonl", "--metric", "train/loss")
    assert [row[1] for row in cells(out)[1:]] == ["b/y", "b/z"]
    log(b, "z", 6.0, "more")
    _, out, _ = call(b, "--metric", "train/loss")
    assert [row[1] for row in cells(out)[1:]] == ["b/y", "b/z/metrics", "b/z/more"]
    log(tmp_path / "other" / "a", "x", 6.0)
    _, out, _ = call(a, tmp_path / "other" / "a", "--metric", "rate")
    assert [row[1] for row in cells(out)[1:]] == ["a", str(tmp_path / "other/a/logs/x/metrics.jsonl")[:37] + "..."]


def test_metrics_are_chosen_by_full_or_last_name(tmp_path, call):
    """In the order asked for; what was observed only when asked for."""
    root = log(tmp_path / "a", "x", 6.0)
    _, out, _ = call(root, "--metric", "observed/step", "--metric", "loss", "--metric", "train/loss")
    assert [row[0] for row in cells(out)[1:]] == ["observed/step", "train/loss", "validation/loss"]
    assert call(root, "--metric", "lsos") == (
        1,
        "",
        "python -m helios_fn plot: no run has a metric 'lsos' (did you mean 'loss'?): there are train/loss, "
        "train/rate, observed/step, validation/loss\n",
    )


def test_what_cannot_be_drawn_is_explained(tmp_path, call):
    """No log, no row, a torn log, no matplotlib, another kind of picture: one line on stderr."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").touch()
    (tmp_path / "torn.jsonl").write_text('{"kind"\n')
    root = log(tmp_path / "a", "x", 6.0)
    for arguments, status, told in (
        (["missing"], 2, "argument RUN: missing does not exist; see"),
        (["empty"], 1, "there is no log in empty: give the run sinks=[hf.sinks.JsonLines()]"),
        (["none.jsonl"], 1, "the logs hold no row yet: nothing to draw"),
        (["torn.jsonl"], 1, "torn.jsonl, line 1 is not a row of a log"),
        ([root, "--output", "p.png"], 1, "p.png cannot be drawn without matplotlib: pip install 'helios-fn[plot]'"),
        ([root, "--output", "p.gif"], 2, "p.gif must end with .png, .svg or .pdf"),
    ):
        found, out, errors = call(*arguments)
        assert (found, out) == (status, "")
        assert told in errors
        assert errors.count("\n") == 1


def test_a_terminal_without_blocks_gets_ascii(tmp_path, call, monkeypatch):
    """And so does a pipe that only takes ASCII."""
    root, stream = log(tmp_path / "a", "x", 6.0), io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["plot", str(root), "--metric", "train/loss"]) == 0
    stream.seek(0)
    assert stream.read().splitlines()[1].split()[-1] == "#~..?_"
    assert [levels_for(encoding) for encoding in ("utf-8", "ascii", "latin-1", None, "no such")] == [
        BLOCKS, ASCII, ASCII, ASCII, ASCII,
    ]  # fmt: skip


def test_the_picture_has_a_panel_for_each_metric(tmp_path, call, monkeypatch, capsys):
    """With matplotlib, here one that takes notes: the curves of all runs in it, and where it was written."""
    drawn = []

    class Line:
        def __init__(self, label: str) -> None:
            self.get_label = lambda: label

    class Axes:
        def __init__(self) -> None:
            self.lines = []

        def plot(self, x, y, *, label, **looks):
            drawn.append((label, list(x), list(y)))
            self.lines.append(Line(label))

        def get_lines(self):
            return self.lines

        set_title = set_xlabel = grid = lambda self, *values, **looks: None

    class Figure:
        def __init__(self, **looks):
            self.axes = []

        def add_subplot(self, rows, columns, place):
            self.axes.append(Axes())
            return self.axes[-1]

        def legend(self, handles, names, **looks):
            drawn.append(names)

        def savefig(self, path):
            drawn.append(str(path))

    module = types.ModuleType("matplotlib.figure")
    module.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    roots = [log(tmp_path / name, "x", 6.0) for name in "ab"]
    status, out, _ = call(*roots, "--metric", "loss")
    assert status == 0
    assert out.splitlines()[-1] == "4 curves in plot.png"
    assert [curve[:2] for curve in drawn[2:4]] == [("a", [3, 6]), ("b", [3, 6])]
    assert drawn[4:] == [["a", "b"], "plot.png"]


@settings(deadline=None, max_examples=examples(40))
@given(values=st.lists(st.floats(), max_size=50), width=st.integers(1, 20), levels=st.sampled_from([BLOCKS, ASCII]))
def test_sparklines_fit_and_reach_from_bottom_to_top(values, width, levels):
    """At most as wide as asked for; the least mean is the lowest level and the greatest the highest."""
    line = sparkline(values, width, levels)
    assert len(line) == min(width, len(values))
    if len(values) <= width:
        finite = [value for value in values if math.isfinite(value)]
        assert [char in levels for char in line] == [math.isfinite(value) for value in values]
        if finite and min(finite) < max(finite) and max(finite) / 2 - min(finite) / 2 > 0:
            assert line[values.index(min(finite))] == levels[0]
            assert line[values.index(max(finite))] == levels[-1]
