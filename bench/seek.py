"""How long until the first batch, when training resumes in the middle of an epoch?

Ours against torchdata's ``StatefulDataLoader`` with its state restored, over shuffled samples that
cost nothing to read. Every measurement runs in a process of its own, from making the loader to having
the batch in hand (imports not counted; "live": from opening a loader whose workers run already). The
table shows medians of interleaved repeats.

    python -m bench.seek [--repeats 5] [--samples 10000000]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

BATCH = 250
LIMIT_MS = 50.0


class Case(NamedTuple):
    """One thing to measure: who, how many samples, at which of them, with how many workers."""

    who: str
    samples: int
    at: int
    workers: int
    live: bool = False
    state: str = ""

    @property
    def label(self) -> str:
        workers = f"{self.workers} workers" + (", live" if self.live else "")
        return f"{self.who:<9} {self.at:>11,} of {self.samples:>11,}  {workers}"


class Cheap:
    """Sample i is i, one by one or a batch at a time."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def cases(samples: int, states: dict[int, str]) -> list[Case]:
    half = samples // 2 // BATCH * BATCH
    peer = [Case("torchdata", samples, half, workers, state=state) for workers, state in states.items()]
    ours = [
        Case("helios_fn", size, at // BATCH * BATCH, 0)
        for size in (samples, 10 * samples)
        for at in (0, size // 2, size - 1)
    ]
    ours += [Case("helios_fn", samples, half, 2, live) for live in (False, True)]
    return ours + peer


def measure(case: Case) -> float:
    """Milliseconds to the first batch; run in a fresh process."""
    return measure_peer(case) if case.who == "torchdata" else measure_ours(case)


def measure_ours(case: Case) -> float:
    from helios_fn import random
    from helios_fn.data import Loader
    from helios_fn.types import Cursor, Share

    key, there = random.key(6691), Cursor(epoch=3, batch=case.at // BATCH)
    if case.live:
        loader = Loader(Cheap(case.samples), BATCH, workers=case.workers, seed_globals=False)
        next(loader.open(Cursor(), key=key, share=Share()))
    start = time.perf_counter()
    if not case.live:
        loader = Loader(Cheap(case.samples), BATCH, workers=case.workers, seed_globals=False)
    next(loader.open(there, key=key, share=Share()))
    elapsed = time.perf_counter() - start
    loader.close()
    return elapsed * 1e3


def peer_loader(samples: int, workers: int):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Cheap(samples), batch_size=BATCH, shuffle=True, num_workers=workers)


def measure_peer(case: Case) -> float:
    import torch

    state = torch.load(case.state, weights_only=False)
    start = time.perf_counter()
    loader = peer_loader(case.samples, case.workers)
    loader.load_state_dict(state)
    next(iter(loader))
    return (time.perf_counter() - start) * 1e3


def save_peer_state(samples: int, workers: int, path: str) -> None:
    """Read half of an epoch and save where that leads, as a training run would."""
    import torch

    loader = peer_loader(samples, workers)
    for batch, _ in enumerate(loader, start=1):
        if batch == samples // 2 // BATCH:
            break
    torch.save(loader.state_dict(), path)


def in_fresh_process(job: str, *arguments: object) -> str:
    command = [sys.executable, "-m", "bench.seek", "--job", job, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} {arguments} failed:\n{done.stderr}")
    return done.stdout


def do_job(job: str, arguments: str) -> None:
    if job == "measure":
        print(measure(Case(*json.loads(arguments))))
    else:
        save_peer_state(*json.loads(arguments))


def peer_states(samples: int, folder: Path) -> dict[int, str]:
    """The saved states of the peer by number of workers; none where it is not installed."""
    if importlib.util.find_spec("torchdata") is None:
        print("torchdata is not installed, so there is no peer to compare with: pip install torchdata\n")
        return {}
    states = {workers: str(folder / f"{workers}.state") for workers in (0, 2)}
    for workers, path in states.items():
        print(f"bringing torchdata to the middle, {workers} workers ...", file=sys.stderr, flush=True)
        in_fresh_process("save", samples, workers, path)
    return states


def report(medians: dict[Case, float], samples: int) -> None:
    peers = {case.workers: ms for case, ms in medians.items() if case.who == "torchdata"}
    print(f"{'':<58} {'ms':>9} {'of torchdata':>13}")
    for case, ms in medians.items():
        ratio = f"{ms / peers[case.workers]:>13.4f}" if case.workers in peers else f"{'-':>13}"
        print(f"{case.label:<58} {ms:>9.1f} {ratio}")
    print(json.dumps(summary(medians, samples)))


def summary(medians: dict[Case, float], samples: int) -> dict[str, object]:
    import numpy
    import torch

    alone = [ms for case, ms in medians.items() if case.who == "helios_fn" and case.workers == 0]
    return {
        "benchmark": "seek",
        "samples": samples,
        "batch": BATCH,
        "ms": {" ".join(case.label.split()): round(ms, 2) for case, ms in medians.items()},
        "slowest_without_workers_ms": round(max(alone), 2),
        "limit_ms": LIMIT_MS,
        "within_limit": max(alone) < LIMIT_MS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="once, among few samples")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given, _ = parser.parse_known_args()  # the flags of the other benchmarks mean nothing here
    if given.quick:
        given.repeats, given.samples = 1, 100_000
    if given.job:
        do_job(*given.job)
        return
    with tempfile.TemporaryDirectory() as folder:
        todo = cases(given.samples, peer_states(given.samples, Path(folder)))
        times: dict[Case, list[float]] = {case: [] for case in todo}
        for _ in range(given.repeats):
            for case in todo:
                times[case].append(float(in_fresh_process("measure", *case)))
    report({case: statistics.median(values) for case, values in times.items()}, given.samples)


if __name__ == "__main__":
    main()
