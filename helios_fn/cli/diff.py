"""``diff``: where two saved states differ, and by how much."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoint import open_contents
from ..checkpoint.structure import compare
from ..text import leaves, lines_out, number, plural, shown, table
from .distance import Distance, distance
from .places import single

_PATH_WIDTH = 48


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "diff",
        help="compare two saved states",
        description="Compare two saved states: structure first, then each leaf bit by bit. Columns: how many elements "
        "differ, the largest absolute and relative difference (to the larger of the two magnitudes), and the largest "
        "distance in units in the last place, that is, how many floats lie between. Memory layout, names, times and "
        "configurations are not compared. Status 0: equal. 1: different.",
    )
    kinds = "a checkpoint, a root (its newest), or a .safetensors"
    parser.add_argument("left", metavar="A", type=single, help=kinds)
    parser.add_argument("right", metavar="B", type=single, help=kinds)
    parser.add_argument("--rows", type=_rows, default=20, metavar="N", help="show at most N leaves (default: 20)")
    parser.set_defaults(run=run)


def _rows(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of rows, got {text}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Compare, and say what was found."""
    left, right = open_contents(options.left), open_contents(options.right)
    mismatches = list(compare(left.structure, right.structure))
    if mismatches:
        print(f"{plural(len(mismatches), 'difference')} in structure:")
        rows = [["path", "A", "B"], *([shown(text) or "(root)" for text in row] for row in mismatches[: options.rows])]
        lines_out(table(rows, indent=2))
        _more(len(mismatches) - options.rows)
    here, there = left.values(), right.values()
    common = [path for path in here if path in there and _alike(here[path], there[path])]
    distances = {path: _distance(here[path], there[path]) for path in common}
    found = {path: apart for path, apart in distances.items() if apart.differing}
    if found:
        print(f"{len(found)} of {leaves(len(common))} differ:")
        _show(found, here, there, options.rows)
    elif not mismatches:
        print(f"equal: {leaves(len(common))}, bit for bit")
    return 1 if found or mismatches else 0


def _alike(left: Any, right: Any) -> bool:
    """Whether two leaves have elements that can be compared one by one."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape
    return type(left) is type(right)


def _tensor(leaf: Any) -> torch.Tensor | None:
    """A leaf as a tensor to compute with, if it is a number."""
    if isinstance(leaf, torch.Tensor):
        return leaf
    if isinstance(leaf, bool | float | complex) or (isinstance(leaf, int) and abs(leaf) < 1 << 63):
        kinds = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}
        return torch.tensor(leaf, dtype=kinds[type(leaf)])
    return None


def _distance(left: Any, right: Any) -> Distance:
    here, there = _tensor(left), _tensor(right)
    if here is None or there is None:
        return Distance(int(left != right))
    return distance(here, there)


def _show(found: Mapping[str, Distance], left: Mapping[str, Any], right: Mapping[str, Any], limit: int) -> None:
    rows = [["leaf", "differ", "of", "max abs", "max rel", "max ulp"]]
    for path, apart in list(found.items())[:limit]:
        leaf = left[path]
        total = leaf.numel() if isinstance(leaf, torch.Tensor) else 1
        measures = [_cell(apart.absolute), _cell(apart.relative), _cell(apart.ulps)]
        rows.append([shown(path, _PATH_WIDTH) or "(root)", str(apart.differing), str(total), *measures])
    lines_out(table(rows, right=range(1, 6), indent=2))
    _more(len(found) - limit)
    first = next(iter(found))
    worst = max(found, key=lambda path: _badness(found[path]))
    print(f"first: {_element(first, found[first].first, left[first], right[first])}")
    print(f"worst: {_element(worst, found[worst].worst, left[worst], right[worst])}")


def _badness(apart: Distance) -> tuple[float, float]:
    relative, absolute = apart.relative or 0.0, apart.absolute or 0.0
    return math.inf if math.isnan(relative) else relative, math.inf if math.isnan(absolute) else absolute


def _element(path: str, index: tuple[int, ...], left: Any, right: Any) -> str:
    if isinstance(left, torch.Tensor):
        place = str(list(index)) if index else ""
        values = [_value(side[index]) for side in (left, right)]
    else:
        place, values = "", [shown(repr(side), _PATH_WIDTH) for side in (left, right)]
    return f"{shown(path)}{place}: {values[0]} in A, {values[1]} in B"


def _value(element: torch.Tensor) -> str:
    value = element.item()
    return f"{value:.9g}" if isinstance(value, float) and element.dtype != torch.float64 else repr(value)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) and value < 10_000_000 else number(value)


def _more(count: int) -> None:
    if count > 0:
        print(f"  ... and {count} more; --rows shows them")
