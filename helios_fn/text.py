"""Text for terminals: aligned, of bounded width, and safe whatever a file calls its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def shown(text: str, width: int | None = None) -> str:
    """Text from a file without anything that a terminal would obey, cut to ``width``."""
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return safe if width is None or len(safe) <= width else f"{safe[: max(0, width - 3)]}..."


def one_line(text: str) -> str:
    """The lines of a message as one."""
    return "; ".join(line.strip().rstrip(";") for line in text.splitlines() if line.strip()).replace(":; ", ": ")


def size(count: int) -> str:
    """A number of bytes for people: three digits and a decimal unit."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def plural(count: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def leaves(count: int) -> str:
    """``1 leaf``, ``2 leaves``."""
    return "1 leaf" if count == 1 else f"{count} leaves"


def number(value: float) -> str:
    """A float in at most ten characters."""
    return f"{value:.4g}"


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), indent: int = 0) -> list[str]:
    """Rows of cells as aligned lines; the columns in ``right`` are set to the right."""
    if not rows:
        return []
    to_right = set(right)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def lines_out(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Print lines, by default to the standard output."""
    for line in lines:
        print(line, file=file)
