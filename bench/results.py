"""``bench/RESULTS.md``: one section per script, each replaced on its own, and above them all targets in one table."""

from __future__ import annotations

import os
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# Results

Written by `make bench` and `make benchmore`; each section is replaced when its script runs (`python -m bench.step`).
Ratios are medians over rounds, in each of which all cases of a table run one after the other: compare within a table,
not between two.
"""
TARGETS_HEAD = "| target | wanted | found | verdict |\n|---|---|---|---|"
SECTION = re.compile(r"<!-- section (\w+) -->\n(.*?)<!-- end \1 -->\n", re.DOTALL)


def replace_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Put ``text`` in the place of the section of that name, and gather the targets of all sections anew."""
    sections = dict(SECTION.findall(path.read_text())) if path.exists() else {}
    sections[name] = text.strip() + "\n"
    targets = [row for section in sections.values() for row in target_rows(section)]
    body = [HEAD, "## Targets\n", "\n".join([TARGETS_HEAD, *targets]) + "\n"]
    body += [f"<!-- section {key} -->\n{sections[key]}<!-- end {key} -->\n" for key in sorted(sections)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(body))
    os.replace(temporary, path)


def target_rows(section: str) -> list[str]:
    """The rows of a section's table of targets."""
    _, found, rest = section.partition(TARGETS_HEAD + "\n")
    rows = []
    for line in rest.splitlines() if found else []:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well in a console."""
    lines = [[cell.replace("|", "/") for cell in line] for line in [head, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
