"""What does compiling a step cost: the first time, from the caches the next time, and what does each step cost then?

Each start is a process of its own with a cache folder of its own: *cold* finds it empty, *warm* as the cold start has
left it, which is what a relaunched run finds. Seconds until the first step is done, imports not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from . import models, step
from .harness import Bench
from .models import Workload

WORKLOADS = {workload.name: workload for workload in (models.MLP, models.GPT_SMALL)}
LOOP, LOOP_EAGER, GRAD, WHOLE = "loop, torch.compile + fused", "loop, eager, fused", 'compile="grad"', 'compile="whole"'
# A GPT takes minutes, the longest as a whole, where its kernels gain nothing by it.
STARTS = [("MLP 26k", LOOP), ("MLP 26k", GRAD), ("MLP 26k", WHOLE), ("GPT 0.8M", LOOP), ("GPT 0.8M", GRAD)]


def first_and_rest(workload: Workload, way: str) -> tuple[float, float]:
    """Seconds to the end of the first step, and the median of the later ones in microseconds."""
    began = time.perf_counter()
    if way in (LOOP, LOOP_EAGER):
        iteration = step.loop(workload, fused=True, compiled=way == LOOP)
    else:
        iteration = step.ours(workload, donate=True, compiled="grad" if way == GRAD else "whole")
    iteration()
    first = time.perf_counter() - began
    iteration()  # a second graph would be compiled here
    second = time.perf_counter() - began
    times = []
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        start = time.perf_counter()
        iteration()
        times.append(time.perf_counter() - start)
    if second - first > max(0.5, 10 * statistics.median(times)):
        first = second  # it was: the step is ready only now
    return first, statistics.median(times) * 1e6


def start(bench: Bench, workload: str, way: str, folder: str) -> tuple[float, float] | str:
    """One start in a process of its own; why it failed, if it did."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
    command = bench.command("--threads", bench.threads, "--part", f"{workload}/{way}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:120]
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Every workload in every way, cold and warm."""
    bench = Bench("compile", __doc__)
    if bench.part is not None:
        torch.set_num_threads(bench.threads)
        workload, _, way = bench.part.partition("/")
        print(json.dumps(first_and_rest(WORKLOADS[workload], way)))
        return
    rows: list[list[Any]] = []
    for workload, way in [("MLP 26k", LOOP_EAGER)] if bench.quick else STARTS:
        with tempfile.TemporaryDirectory() as folder:
            cold = start(bench, workload, way, folder)
            warm = cold if isinstance(cold, str) else start(bench, workload, way, folder)
            # The benchmarks that follow need not compile the same again.
            shutil.copytree(folder, cache_dir(), dirs_exist_ok=True)
        if isinstance(cold, str) or isinstance(warm, str):
            rows.append([f"{workload}: {way} (skipped: {cold if isinstance(cold, str) else warm})", "-", "-", "-"])
        else:
            rows.append([f"{workload}: {way}", round(cold[0], 2), round(warm[0], 2), round(warm[1])])
    bench.table("Compiling", ["step", "cold s", "warm s", "then us per step"], rows)
    bench.finish()


if __name__ == "__main__":
    main()
