"""The shared way to measure and to report. A script answers one question and looks like this:

    from .harness import Bench, attempt

    def main() -> None:
        bench = Bench("optim", __doc__)                     # reads --quick, --threads, --rounds, --dry
        timing = bench.compare(
            "AdamW, 100 tensors",
            {
                "torch fused": torch_update,                # a callable: one iteration
                "ours": attempt(lambda: our_update()),      # made now; if that fails, a row that says why
            },
            base="torch fused",                             # ratios are to this case
        )
        bench.target_ratio("adaptor / torch's fused update", timing, "ours", "torch fused", at_most=1.08)
        bench.finish()

    if __name__ == "__main__":
        main()

and is run by ``python -m bench.optim`` from the root of the checkout (not ``python bench/optim.py``: see ``__init__``).

- A case is a callable that does one iteration; or `Whole(function)`, whose ``function()`` measures a whole
  stretch by itself with a `Stopwatch` and returns a `Span`; or `Skip(reason)`.
- ``bench.compare`` interleaves the cases, prints a table and returns a `Timing`: ``timing.ratio(a, b)`` is the median
  of the per-round ratios of wall time (``clock="cpu"`` for CPU time), ``timing.excess(a, b)`` of the differences in
  microseconds. Both are ``None`` where a case was skipped.
- Figures of another kind (bytes, samples per second, seconds of a subprocess): ``bench.table(title, head, rows)``.
- ``bench.target(what, figure, at_most=...)`` or ``at_least=...``; a figure ``None`` reads "not measured", with the
  ``note``. ``bench.target_ratio`` takes it from a `Timing`, of both clocks.
- ``bench.note(text)`` adds a paragraph. Where a target is missed, ``bench.in_situ(title, around, parts)`` tells what
  the parts of an iteration cost (trust it, not the time of a part called in a loop), and
  ``bench.explain(title, function)`` is a profile.
- ``bench.in_parts(names, function)`` calls ``function(name)`` in a fresh process for each name (compilers, allocators
  and caches remember what came before); ``bench.command(...)`` is the command line of this script, for what has
  to be measured in subprocesses otherwise.
- ``bench.quick`` is for tests: two tiny rounds, nothing written. Make your own numbers of repeats depend on it, and
  leave out what takes seconds, such as inductor.
- ``bench.finish()`` prints one JSON line per result, then the targets, and replaces the script's section of
  ``bench/RESULTS.md`` (not with ``--quick`` or ``--dry``).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import machine, results
from .measure import Case, Skip, Span, Stopwatch, Timing, Whole, in_situ, measure

__all__ = ["Bench", "Case", "Skip", "Span", "Stopwatch", "Target", "Timing", "Whole", "attempt", "last_line"]


class Target(NamedTuple):
    """A figure and what was wanted of it."""

    what: str
    figure: float | None
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""
    note: str = ""
    cpu: float | None = None

    @property
    def wanted(self) -> str:
        """The limit in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}{self.unit}"
        return "reported" if self.at_least is None else f">= {self.at_least:g}{self.unit}"

    @property
    def verdict(self) -> str:
        """Whether the figure keeps to the limit."""
        if self.figure is None:
            return "not measured"
        if self.at_most is None and self.at_least is None:
            return "reported"
        kept = self.figure <= self.at_most if self.at_most is not None else self.figure >= (self.at_least or 0.0)
        return "met" if kept else "missed"

    def row(self) -> list[str]:
        """The cells of a table."""
        found = "-" if self.figure is None else f"{self.figure:.3g}{self.unit}"
        if self.cpu is not None:
            found += f" (CPU {self.cpu:.3g})"
        verdict = f"{self.verdict}: {self.note}" if self.note and self.verdict != "met" else self.verdict
        return [self.what, self.wanted, found, verdict]


class Bench:
    """One script's run: its options, what it measured, and its section of the results."""

    def __init__(self, name: str, question: str | None, arguments: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="two tiny rounds, to see that it works")
        parser.add_argument("--dry", action="store_true", help="leave bench/RESULTS.md alone")
        parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
        parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison (default 9)")
        parser.add_argument("--part", help="measure only this part, and write nothing")
        parser.add_argument("--into", help=argparse.SUPPRESS)  # where a part leaves what it found
        given = parser.parse_args(arguments)
        torch.set_num_threads(given.threads)
        self.name, self.quick, self.part, self.threads = name, given.quick, given.part, given.threads
        self._write, self._into = not (given.quick or given.dry or given.part), given.into
        self.rounds = 2 if given.quick else given.rounds
        self.facts = machine.describe()
        self.targets: list[Target] = []
        self._question = " ".join((question or name).strip().partition("\n\n")[0].split())
        self._blocks: list[str] = []
        self._lines: list[dict[str, Any]] = []
        if self._into is None:
            print(f"== {name}: {self._question}\n{self.machine_line}\n", flush=True)

    @property
    def machine_line(self) -> str:
        """The machine and the versions in one line."""
        facts = dict(self.facts)
        head = f"{facts.pop('cpu')}, {facts.pop('cores')} cores, {facts.pop('threads')} torch thread(s)"
        return f"{head}, {facts.pop('system')}; " + ", ".join(f"{name} {value}" for name, value in facts.items())

    def compare(
        self, title: str, cases: Mapping[str, Case], *, base: str, rounds: int | None = None, chunk: float = 0.05
    ) -> Timing:
        """Time the cases in turns, print the table, and keep it for the section.

        Args:
            title: what the iterations are.
            cases: by name, in the order of the table.
            base: the case that ratios refer to.
            rounds: how often all cases take their turn, if not as given on the command line.
            chunk: how long a turn lasts, in seconds (at least one iteration).
        """
        rounds = self.rounds if rounds is None or self.quick else rounds
        timing = measure(cases, rounds=rounds, chunk=0.002 if self.quick else chunk)
        self.report(title, cases, timing, base=base)
        return timing

    def report(self, title: str, cases: Mapping[str, Case], timing: Timing, *, base: str) -> None:
        """Print and keep the table of a `Timing` that was taken elsewhere, as in other processes."""
        rows = [self._row(title, name, case, base, timing) for name, case in cases.items()]
        self._show(title, ["peer", "us/iteration", "CPU us", "ratio", "CPU ratio", "quartiles"], rows)
        skipped = [f"- {name}: {case.reason}" for name, case in cases.items() if isinstance(case, Skip)]
        if skipped:
            self.note("\n".join(["Skipped:\n", *skipped]))

    def _row(self, title: str, name: str, case: Case, base: str, timing: Timing) -> list[str]:
        if isinstance(case, Skip):
            self._lines.append({"table": title, "case": name, "skipped": case.reason})
            return [f"{name} (skipped)", "-", "-", "-", "-", "-"]
        wall, cpu = timing.median(name), timing.median(name, "cpu")
        line = {"table": title, "case": name, "us": round(wall, 3), "cpu_us": round(cpu, 3)}
        cells = [name, f"{wall:.1f}", f"{cpu:.1f}", "-", "-", "-"]
        ratio, cpu_ratio = timing.ratio(name, base), timing.ratio(name, base, "cpu")
        if ratio is not None and cpu_ratio is not None:
            ordered = sorted(timing.ratios(name, base))
            low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
            cells[3:] = [f"{ratio:.3f}", f"{cpu_ratio:.3f}", f"{low:.2f}-{high:.2f}"]
            line |= {"base": base, "ratio": round(ratio, 4), "cpu_ratio": round(cpu_ratio, 4)}
        self._lines.append(line)
        return cells

    def table(self, title: str, head: list[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print and keep a table of figures of another kind. Floats are shown with four digits."""
        self._lines += [{"table": title} | dict(zip(head, row, strict=True)) for row in rows]
        self._show(title, head, [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows])

    def _show(self, title: str, head: list[str], rows: list[list[str]]) -> None:
        drawn = results.table(head, rows)
        print(f"{title}\n{drawn}\n", flush=True)
        self._blocks.append(f"### {title}\n\n{drawn}\n")

    def note(self, text: str) -> None:
        """Print and keep a paragraph."""
        print(text + "\n", flush=True)
        self._blocks.append(text + "\n")

    def target(
        self,
        what: str,
        figure: float | None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
        note: str = "",
        cpu: float | None = None,
    ) -> Target:
        """Hold a figure against its limit; with no limit it is only reported. ``cpu`` is shown beside it."""
        self.targets.append(Target(what, figure, at_most, at_least, unit, note, cpu))
        return self.targets[-1]

    def target_ratio(self, what: str, timing: Timing, case: str, base: str, *, at_most: float | None = None) -> Target:
        """Hold the ratio of two cases against its limit: of wall time, with that of CPU time beside it."""
        return self.target(what, timing.ratio(case, base), at_most=at_most, cpu=timing.ratio(case, base, "cpu"))

    def explain(
        self, title: str, function: Callable[[], Any], *, calls: int = 10**6, per: int = 1, lines: int = 14
    ) -> None:
        """Keep a profile of ``function``: in which functions the time of an iteration is spent.

        It is called for two seconds, at most ``calls`` times; ``per`` is how many iterations a call makes. The profiler
        slows Python functions down and kernels not, so read shares, not sums.
        """
        if self.quick:
            return
        function()  # what happens only once, such as compiling, is not to be explained
        profiler, until, each = cProfile.Profile(), time.perf_counter() + 2.0, 0
        while not each or (time.perf_counter() < until and each < calls * per):
            profiler.enable()
            function()
            profiler.disable()
            each += per
        entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
        ranked = sorted(entries.items(), key=lambda entry: -entry[1][2])[:lines]
        rows = [
            [_place(*where), f"{count / each:.1f}", f"{own / each * 1e6:.2f}", f"{total / each * 1e6:.2f}"]
            for where, (_, count, own, total, _) in ranked
        ]
        self._show(f"Profile: {title}", ["function", "calls", "own us", "with callees us"], rows)

    def in_parts(self, names: Sequence[str], function: Callable[[str], None]) -> None:
        """Call ``function`` for each name, in a fresh process for each (in this one with ``--quick``)."""
        for name in names:
            if self.part == name or (self.quick and self.part is None):
                function(name)
            elif self.part is None:
                with tempfile.TemporaryDirectory() as folder:
                    found = Path(folder, "found.json")
                    options = ["--threads", self.threads, "--rounds", self.rounds, "--part", name, "--into", found]
                    done = subprocess.run(self.command(*options), check=False)
                    if done.returncode == 0:
                        self._take(json.loads(found.read_text()))
                    else:
                        self.note(f"{name}: not measured, the process ended with {done.returncode}.")

    def command(self, *arguments: Any) -> list[str]:
        """The command that runs this script in a fresh process."""
        return [sys.executable, "-m", f"bench.{self.name}", *map(str, arguments)]

    def _take(self, found: dict[str, Any]) -> None:
        self._blocks += found["blocks"]
        self._lines += found["lines"]
        self.targets += [Target(*target) for target in found["targets"]]

    def in_situ(self, title: str, around: Callable[[], Any], parts: Mapping[str, Callable[[], Any]]) -> None:
        """Keep what the parts of an iteration cost: each called once between two calls of ``around``, the whole."""
        if self.quick:
            return
        rows = [[name, us] for name, us in in_situ(around, parts, seconds=6.0).items()]
        self.table(f"In situ: {title}", ["part", "us"], rows)

    def finish(self) -> None:
        """Print the JSON lines and the targets, and replace the script's section of the results."""
        if self._into is not None:
            found = {"blocks": self._blocks, "lines": self._lines, "targets": self.targets}
            Path(self._into).write_text(json.dumps(found))
            return
        self._lines += [
            {"target": t.what, "wanted": t.wanted, "figure": t.figure, "cpu": t.cpu, "verdict": t.verdict}
            for t in self.targets
        ]
        for line in self._lines:
            print(json.dumps({"bench": self.name} | line | {"machine": self.facts}))
        if self.targets:
            drawn = results.table(["target", "wanted", "found", "verdict"], [target.row() for target in self.targets])
            print(f"\n{drawn}\n", flush=True)
        if self._write:
            results.replace_section(self.name, self._section())

    def _section(self) -> str:
        rows = ["| " + " | ".join(cell.replace("|", "/") for cell in target.row()) + " |" for target in self.targets]
        targets = "\n".join([results.TARGETS_HEAD, *rows]) + "\n" if rows else ""
        head = f"## {self.name}\n\n{self._question}\n\n{self.machine_line}\n"
        return "\n".join(part for part in [head, targets, *self._blocks] if part)


def _place(file: str, line: int, name: str) -> str:
    """Where a function is, without the folders that differ between machines."""
    if file == "~":
        return f"`{name}`"
    parts = Path(file).parts
    for root in ("site-packages", "helios_fn", "bench"):
        if root in parts:
            at = len(parts) - 1 - parts[::-1].index(root)
            return f"`{'/'.join(parts[at + (root == 'site-packages') :])}:{line} {name}`"
    return f"`{Path(file).name}:{line} {name}`"


def attempt(make: Callable[[], Case]) -> Case:
    """The case that ``make`` returns, or a `Skip` that says why it could not be made.

    The case is run once, so that what fails only when it runs is skipped too.
    """
    try:
        case = make()
        if not isinstance(case, Skip):
            (case.function if isinstance(case, Whole) else case)()
    except Exception as error:  # anything may be missing: a peer, a compiler, a feature
        return Skip(_short(f"{type(error).__name__}: {error}"))
    return case


def last_line(stderr: str) -> str:
    """What a failed process said last: usually its exception."""
    return _short((stderr.strip().splitlines() or ["no message"])[-1])


def _short(text: str) -> str:
    """A message in one line, without the folders of this machine."""
    return re.sub(r"/\S*/", "", " ".join(text.split()))[:160]
