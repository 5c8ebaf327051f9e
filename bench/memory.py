"""How much memory does a training step need at its peak, beyond the parameters and the optimiser's memory at rest?

A language model of 29 million parameters with short batches, so that parameters outweigh activations. Each case is a
process of its own that trains a few steps; its peak is counted from when the optimiser's memory exists. Gradients cost
one times the parameters in every case; a pure step also makes a new state (three times the parameters) before the
old one is dropped.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import models, step
from .harness import Bench, last_line
from .models import Workload

LIMIT = 1.0
BIG = Workload("GPT 29M", lambda: models.GPT(width=768, layers=4, length=32), lambda: models.text(1, 32, 4))
SMALL = Workload("GPT 0.2M", lambda: models.GPT(width=64, layers=2, length=32), lambda: models.text(1, 32, 4))
FUSED, PURE, DONATED = step.FUSED, step.PURE, step.DONATED
CASES: dict[str, Callable[[Workload], Callable[[], Any]]] = {
    step.DEFAULT: lambda workload: step.loop(workload, fused=None),
    FUSED: lambda workload: step.loop(workload, fused=True),
    PURE: lambda workload: step.ours(workload),
    DONATED: lambda workload: step.ours(workload, donate=True),
}
MIB = 2.0**20


def status(field: str) -> float:
    """A figure of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def settle() -> None:
    """Give what is free back to the system, so that what is resident is what is held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(case: str, quick: bool) -> dict[str, float]:
    """In a fresh process: what the steps after the first need at their peak, in MiB."""
    workload = SMALL if quick else BIG
    CASES[case](SMALL)()  # what is loaded with the first step, such as kernels and threads, is not the step's
    settle()
    empty = status("VmRSS")
    size = sum(parameter.numel() * parameter.element_size() for parameter in workload.network().parameters())
    iteration = CASES[case](workload)
    for _ in range(2):  # the optimiser's memory and the allocator's caches
        iteration()
    settle()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    for _ in range(3):
        iteration()
    return {"parameters": size / MIB, "at rest": before - empty, "peak": status("VmHWM") - empty}


def main() -> None:
    """Each case in a process of its own; ``--part`` names one."""
    bench = Bench("memory", __doc__)
    if bench.part is not None:
        print(json.dumps(measure(bench.part, bench.quick)))
        return
    beyond: dict[str, float] = {}
    rows: list[list[Any]] = []
    for case in [FUSED, DONATED] if bench.quick else CASES:
        options = ["--part", case, "--threads", bench.threads, *(["--quick"] if bench.quick else [])]
        done = subprocess.run(bench.command(*options), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            bench.note(f"{case} was skipped: {last_line(done.stderr)}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        beyond[case] = found["peak"] - found["parameters"]
        above = (found["peak"] - found["at rest"]) / found["parameters"]
        rows.append([case, round(found["at rest"]), round(found["peak"]), round(beyond[case]), round(above, 2)])
    head = ["case", "at rest MiB", "peak MiB", "peak less parameters MiB", "peak above rest, in parameters"]
    bench.table(f"{(SMALL if bench.quick else BIG).name}, resident memory above an empty process", head, rows)
    ratio = beyond[DONATED] / beyond[FUSED] if beyond.keys() >= {DONATED, FUSED} else None
    bench.target("peak memory beyond the parameters: donated / loop with fused AdamW", ratio, at_most=LIMIT)
    bench.finish()


if __name__ == "__main__":
    main()
