"""What does training with several processes cost, against ``DistributedDataParallel``?

The peer is the usual loop: the module in ``torch.nn.parallel.DistributedDataParallel``, ``backward`` (with ``no_sync``
for all micro-batches but the last of an iteration), and fused AdamW. Ours is the step that ``hf.make_step`` returns,
donated, on the micro-batches that the driver would hand over: with the key and the scope of each, the exact weights,
the watch for values that are not finite. Both train in the same processes (gloo, one thread each), turn by turn. *Fold*
sums as the peer does; *tree* gives the same bits for any number of processes.

Where there are more processes than cores, they wait for their turns on a processor: such figures are only reported.

    python -m bench.world [--part "GPT 0.8M, 2 processes, S=2"]
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn import functional as F

from . import models
from .harness import Bench
from .measure import Span, Stopwatch, Timing, Whole, measure
from .models import LEARNING_RATE, Workload

DDP, FOLD, TREE = "DDP + fused AdamW", "ours, fold", "ours, tree"
WORKLOADS = {workload.name: workload for workload in (models.MLP, models.GPT_SMALL)}


class Limits(NamedTuple):
    """At most these ratios, with two processes."""

    fold: float
    tree: float


LIMITS = {"MLP 26k": Limits(1.10, 1.35), "GPT 0.8M": Limits(1.02, 1.08)}


class Part(NamedTuple):
    """One comparison: a workload, the number of processes, and of micro-batches in an iteration of all of them."""

    workload: str
    processes: int
    count: int

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.workload}, {self.processes} processes, S={self.count}"


# With S = 6, a process of two holds two nodes of the tree: that is another way through the network.
PARTS = [Part(name, size, count) for name in WORKLOADS for size, count in ((2, 2), (2, 4), (2, 6), (4, 4), (4, 8))]


Watch = Callable[[str, Callable[..., Any]], Callable[..., Any]]
"""Makes of a named part of an iteration one that is watched."""


class Parts:
    """Adds up the time of an iteration's parts.

    Attributes:
        spent: by name, the seconds of wall-clock and of CPU time of this thread, since it was last emptied.
    """

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, float]] = {}

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its time taken."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                before = self.spent.get(name, (0.0, 0.0))
                self.spent[name] = before[0] + time.perf_counter() - wall, before[1] + time.thread_time() - cpu

        return watched


def peer(workload: Workload, rank: int, each: int, watch: Watch | None = None) -> Callable[[], Any]:
    """One iteration of the loop with ``DistributedDataParallel``, of ``each`` micro-batches in this process."""
    _, params, buffers = models.pure_parts(workload)
    module = torch.nn.parallel.DistributedDataParallel(models.module_like(workload, params, buffers))
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)
    batches = _batches(workload, rank)
    if watch is not None:
        module.forward = watch("DDP: forward", module.forward)
        optimizer.zero_grad = watch("DDP: zero_grad", optimizer.zero_grad)  # type: ignore[method-assign]
        optimizer.step = watch("DDP: step", optimizer.step)  # type: ignore[method-assign]

    def iteration() -> Any:
        optimizer.zero_grad()
        for at in range(each):
            x, y = next(batches)
            with module.no_sync() if at < each - 1 else contextlib.nullcontext():
                loss = F.cross_entropy(module(x), y)
                (loss / each if each > 1 else loss).backward()
        optimizer.step()

    return iteration


def ours(
    workload: Workload, rank: int, size: int, count: int, reduction: Any, watch: Watch | None = None
) -> Callable[[], Any]:
    """One call of our step on this process's share of ``count`` micro-batches."""
    import helios_fn as hf

    loss_fn, params, buffers = models.pure_parts(workload)
    optimizer, around = hf.optim.adamw(LEARNING_RATE), None
    if watch is not None:
        optimizer = optimizer._replace(update=watch("ours: optimizer.update", optimizer.update))
        around = functools.partial(watch, "ours: forward and backward")
    step = hf.make_step(loss_fn, optimizer, around_grad=around)
    state = hf.init_state(params, optimizer, buffers=buffers)
    batches = _batches(workload, rank)
    start, stop = count * rank // size, count * (rank + 1) // size

    def iteration() -> Any:
        nonlocal state
        items = tuple(next(batches) for _ in range(start, stop))
        state = step.donating(state.replace(metrics={}), hf.MicroBatches(items, start, count, reduction))

    return iteration


def _batches(workload: Workload, rank: int) -> Any:
    batches = workload.cycle()
    for _ in range(rank):  # others than those of the process before
        next(batches)
    return batches


def work(name: str, count: int, rounds: int, chunk: float) -> Timing:
    """What each process does: all cases in turns. Rank 0's clock counts, as all wait for each other anyway."""
    import helios_fn as hf

    world, workload = hf.distributed.connect(), WORKLOADS[name]
    calls = {
        DDP: peer(workload, world.rank, count // world.size),
        FOLD: ours(workload, world.rank, world.size, count, "fold"),
        TREE: ours(workload, world.rank, world.size, count, "tree"),
    }
    for _ in range(5):
        for call in calls.values():
            call()
    iterations = _iterations(calls[DDP], world, chunk)

    def chunk_of(call: Callable[[], Any]) -> Whole:
        def function() -> Span:
            hf.distributed.barrier()
            watch = Stopwatch()
            for _ in range(iterations):
                call()
            return watch.span(iterations)

        return Whole(function)

    return measure({case: chunk_of(call) for case, call in calls.items()}, rounds=rounds, chunk=chunk)


def inside(name: str, count: int, seconds: float) -> list[list[Any]]:
    """Where the time of an iteration goes, in each process: rows of a part, and microseconds of both clocks (medians).

    The parts are timed where they are, for an exchange also waits for the others.
    """
    import helios_fn as hf

    world, workload, parts = hf.distributed.connect(), WORKLOADS[name], Parts()
    calls = {
        "DDP": peer(workload, world.rank, count // world.size, parts.watch),
        "ours": ours(workload, world.rank, world.size, count, "fold", parts.watch),
    }
    whole = {case: parts.watch(f"{case}: all", call) for case, call in calls.items()}
    backward = parts.watch("DDP: backward, and the sum over processes", torch.Tensor.backward)
    summing = parts.watch("ours: sum over processes", type(world).reduce)
    found: dict[str, list[tuple[float, float]]] = {}
    with mock.patch.object(torch.Tensor, "backward", backward), mock.patch.object(type(world), "reduce", summing):
        until = time.perf_counter() + seconds
        for turn in range(10**6):
            for case, call in whole.items():
                hf.distributed.barrier()
                for _ in range(10):
                    parts.spent.clear()
                    call()
                    own = [spent for part, spent in parts.spent.items() if part != f"{case}: all"]
                    rest = tuple(
                        all_ - sum(each) for all_, *each in zip(parts.spent[f"{case}: all"], *own, strict=True)
                    )
                    for part, spent in {**parts.spent, f"{case}: all else": rest}.items():
                        if turn:
                            found.setdefault(part, []).append(spent)
            if world.tell_all(turn > 1 and time.perf_counter() > until):
                break
    return [
        [part, *(statistics.median(clock) * 1e6 for clock in zip(*spent, strict=True))] for part, spent in found.items()
    ]


def _iterations(call: Callable[[], Any], world: Any, chunk: float) -> int:
    """How many make a chunk: a number that all processes have to agree on."""
    start = time.perf_counter()
    for _ in range(5):
        call()
    wanted = max(1, round(5 * chunk / (time.perf_counter() - start)))
    return int(world.tell_all(wanted))


def compare(bench: Bench, part: Part) -> None:
    """Measure one part, and hold it against its limits where each process has a core."""
    import helios_fn as hf

    rounds, chunk = (2, 0.002) if bench.quick else (2 * bench.rounds, 0.1)
    found = hf.launch(work, part.workload, part.count, rounds, chunk, processes=part.processes, threads=bench.threads)
    timing: Timing = found[0]
    bench.report(part.name, {case: Whole(lambda: Span(0, 0, 1)) for case in timing.wall}, timing, base=DDP)
    limits, contended = LIMITS[part.workload], part.processes > len(os.sched_getaffinity(0))
    if contended:
        bench.note(f"{part.processes} processes share {len(os.sched_getaffinity(0))} cores: reported only.")
    judged = part.count in (part.processes, 2 * part.processes) and not contended
    for what, case, base, limit in (
        ("fold / DistributedDataParallel", FOLD, DDP, limits.fold),
        ("tree / fold", TREE, FOLD, limits.tree),
    ):
        bench.target_ratio(f"{part.name}: {what}", timing, case, base, at_most=limit if judged else None)
    if judged and not bench.quick:
        rows = hf.launch(inside, part.workload, part.count, 6.0, processes=part.processes, threads=bench.threads)[0]
        title = f"In situ: {part.name}, the parts of an iteration (with the time that taking their times takes)"
        bench.table(title, ["part", "us", "CPU us of the thread"], rows)


def main() -> None:
    """Each comparison in processes of its own."""
    bench, parts = Bench("world", __doc__), {part.name: part for part in PARTS}
    bench.in_parts(list(parts), lambda name: compare(bench, parts[name]))
    bench.finish()


if __name__ == "__main__":
    main()
