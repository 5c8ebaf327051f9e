"""How long does ``import helios_fn`` take in a program that has imported torch and optree?

Every measurement is a process of its own, with the byte code already written. Much of the time is one full garbage
collection that ``import torch`` leaves due, so that whatever is imported next pays for it: in the second case that was
made before. The third case is what a first program asks for later, once the package is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .harness import Bench, Span, Whole

LIMIT = 0.3
ROUNDS = 5
OURS, COLLECTED, LATER = "import helios_fn", "the same after a collection", "what a first program asks for later"
PROGRAMS = {  # before the clock starts, and while it runs
    OURS: ("import torch, optree", "import helios_fn"),
    COLLECTED: ("import gc, torch, optree; gc.collect()", "import helios_fn"),
    LATER: (
        "import torch, optree, helios_fn as hf",
        "hf.optim.adamw, hf.optim.clip_by_global_norm, hf.schedules.warmup_cosine; "
        "hf.sinks.JsonLines, hf.sinks.TensorBoard, hf.metrics.confusion",
    ),
}


def fresh(before: str, timed: str) -> Span:
    """The time of ``timed`` in a fresh process that has run ``before``."""
    clocks = "(time.perf_counter(), time.process_time())"
    program = f"import time; {before}\nstart = {clocks}\n{timed}\nend = {clocks}\nprint(*start, *end)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=kept)
    wall, cpu, wall_after, cpu_after = map(float, done.stdout.split())
    return Span(wall_after - wall, cpu_after - cpu, 1)


def case(name: str) -> Whole:
    """One of the programs. It runs once before it is measured, which writes the byte code."""
    return Whole(lambda: fresh(*PROGRAMS[name]))


def main() -> None:
    """The cases in turns, each time in a fresh process."""
    bench = Bench("imports", __doc__)
    cases = {name: case(name) for name in ([OURS] if bench.quick else PROGRAMS)}
    timing = bench.compare("In fresh processes", cases, base=OURS, rounds=min(bench.rounds, ROUNDS))
    seconds = {clock: timing.median(OURS, clock) / 1e6 for clock in ("wall", "cpu")}
    what = "import helios_fn beyond torch and optree"
    bench.target(what, seconds["wall"], at_most=LIMIT, unit=" s", cpu=seconds["cpu"])
    bench.finish()


if __name__ == "__main__":
    main()
