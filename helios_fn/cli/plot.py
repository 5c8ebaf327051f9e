"""``plot``: the curves of runs, as a picture and as a table."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ..sinks import read_rows
from ..text import lines_out, number, plural, shown, table
from ..types import Row
from .places import existing
from .sparkline import levels_for, sparkline

_WIDTH = 32
_NAME_WIDTH = 40
_PICTURES = (".png", ".svg", ".pdf")


class Curve(NamedTuple):
    """A metric of a run over iterations."""

    run: str
    metric: str
    iterations: list[int]
    values: list[float]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plot",
        help="draw the metrics of one or several runs",
        description="Draw the metrics of runs over iterations, one panel per metric, and print first, last, least and "
        "greatest value of each curve. Reads what hf.sinks.JsonLines wrote. The picture takes matplotlib "
        "(pip install 'helios-fn[plot]'); without it there is the table alone, with its curves in characters.",
    )
    parser.add_argument("runs", metavar="RUN", type=existing, nargs="+", help="a root, a log folder, or a .jsonl file")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        help="such as train/loss, or loss for both kinds of row, or step for where the time goes; may be repeated "
        "(default: all metrics, without what was observed)",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=_picture, help="the picture, .png, .svg or .pdf (default: plot.png)"
    )
    parser.set_defaults(run=run)


def _picture(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix.lower() not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{text} must end with {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}")
    return path


def run(options: argparse.Namespace) -> int:
    """Read, choose, draw and print."""
    names = _names(options.runs)
    curves = _chosen([curve for log, name in names.items() for curve in _curves(name, read_rows(log))], options.metric)
    drawn = _drawn(curves, options.output)
    _print(curves, several=len(names) > 1)
    if drawn is not None:
        print(f"{plural(len(curves), 'curve')} in {shown(str(drawn))}")
    return 0


def _logs(path: Path) -> list[Path]:
    """The logs in a root, in a log folder, or a file itself.

    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        return [path]
    found = sorted([*path.glob("logs/*/*.jsonl"), *path.glob("*.jsonl")])
    if not found:
        raise ValueError(f"there is no log in {path}: give the run sinks=[hf.sinks.JsonLines()], or name a .jsonl file")
    return found


def _names(runs: Iterable[Path]) -> dict[Path, str]:
    """What to call each log: by the run as it was given, and by its place there where it holds several."""
    names: dict[Path, str] = {}
    for run in runs:
        logs = _logs(run)
        base = run.resolve()
        for log in logs:
            name = base.stem if base.is_file() else base.name
            if len(logs) > 1:
                alone = [other.parent for other in logs].count(log.parent) == 1
                place = (log.parent if alone else log.with_suffix("")).relative_to(run)
                name = "/".join([name, *(part for part in place.parts if part != "logs")])
            names.setdefault(log, name if name not in names.values() else str(log))
    return names


def _curves(run: str, rows: Iterable[Row]) -> list[Curve]:
    found: dict[str, Curve] = {}
    for row in rows:
        named = {f"{row.kind}/{name}": value for name, value in row.metrics.items()}
        named |= {f"observed/{name}": value for name, value in row.observed.items()}
        for name, value in named.items():
            curve = found.setdefault(name, Curve(run, name, [], []))
            curve.iterations.append(row.iteration)
            curve.values.append(value)
    return list(found.values())


def _chosen(curves: list[Curve], metrics: Sequence[str] | None) -> list[Curve]:
    """The curves to show, those of a metric together.

    Raises:
        ValueError: no run has a metric of that name, or there are none at all.
    """
    names = list(dict.fromkeys(curve.metric for curve in curves))
    chosen = [name for name in names if not name.startswith("observed/")] if metrics is None else []
    for metric in metrics or ():
        fitting = [name for name in names if metric in (name, name.partition("/")[2])]
        if not fitting:
            raise ValueError(_unknown(metric, names))
        chosen += fitting
    if not chosen:
        raise ValueError("the logs hold no row yet: nothing to draw")
    return [curve for name in dict.fromkeys(chosen) for curve in curves if curve.metric == name]


def _unknown(metric: str, names: Sequence[str]) -> str:
    close = get_close_matches(metric, [*names, *(name.partition("/")[2] for name in names)], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"no run has a metric {metric!r}{hint}: there are {', '.join(names) or 'none'}"


def _drawn(curves: Sequence[Curve], output: Path | None) -> Path | None:
    """The picture, where it can be drawn.

    Raises:
        ImportError: it was asked for, and matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # draws without a display, and without pyplot's global state
    except ImportError as error:
        if output is None:
            return None
        raise ImportError(f"{output} cannot be drawn without matplotlib: pip install 'helios-fn[plot]'") from error
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    colours = {run: f"C{place % 10}" for place, run in enumerate(dict.fromkeys(curve.run for curve in curves))}
    columns = min(3, math.ceil(math.sqrt(len(metrics))))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), dpi=120, layout="constrained")
    for place, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(rows, columns, place)
        for curve in (curve for curve in curves if curve.metric == metric):
            mark = "." if len(curve.values) <= 40 else None
            axes.plot(
                curve.iterations, curve.values, label=curve.run, color=colours[curve.run], linewidth=1.4, marker=mark
            )
        axes.set_title(metric, parse_math=False)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    if len(colours) > 1:
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend([handles[run] for run in colours], list(colours), loc="outside lower center", ncols=3)
    path = Path("plot.png") if output is None else output
    figure.savefig(path)
    return path


def _print(curves: Sequence[Curve], *, several: bool) -> None:
    """A line per curve."""
    levels = levels_for(sys.stdout.encoding)
    rows = [["metric", *(["run"] if several else []), "first", "last", "min", "max", "curve"]]
    for curve in curves:
        finite = [value for value in curve.values if math.isfinite(value)]
        ends = [number(min(finite)), number(max(finite))] if finite else ["-", "-"]
        cells = [shown(curve.metric, _NAME_WIDTH), *([shown(curve.run, _NAME_WIDTH)] if several else [])]
        cells += [number(curve.values[0]), number(curve.values[-1]), *ends]
        rows.append([*cells, sparkline(curve.values, _WIDTH, levels)])
    lines_out(table(rows, right=range(2 if several else 1, len(rows[0]) - 1)))
