"""What do saving and loading a checkpoint cost, and what does a training loop notice of it?

Parameters and AdamW's two averages, saved to new files of one disk in turns; the files are removed, and the disk is at
rest, before the next turn. DCP is `torch.distributed.checkpoint`. Ours and DCP make the files durable (fsync) before
they return; torch, safetensors and Lightning do not. Ours also checks each byte that it loads. Loading is from the
page cache.

    python -m bench.checkpoint [--part "1 GB"]
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from helios_fn.checkpoint import FileSystem, Store

from . import disk, savers
from .harness import Bench, Case, Stopwatch, Whole, attempt
from .measure import timed
from .savers import State, Wait

TORCH, SYNCED, SAFE, DCP, DCP_ASYNC = "torch.save", "torch.save + fsync", "safetensors", "DCP", "DCP async_save"
DISK = "the disk alone"
LIGHTNING, OURS, WRITER = "Lightning", "ours", "ours, while training goes on"
MAPPED, CLONED = "safetensors, mapped", "safetensors into memory"
MIB = 2**20


class Load(NamedTuple):
    """A state: how many arrays of how many floats in each of its three parts; and rounds at most."""

    name: str
    arrays: int
    floats: int
    rounds: int

    def state(self, *, quick: bool) -> State:
        """Fresh values, the same in every process."""
        generator = torch.Generator().manual_seed(0)
        floats = min(self.floats, 1000) if quick else self.floats
        parts = ("params", "average", "square")
        shape = (floats // 16, 16)
        return {
            part: {f"layer{n}.weight": torch.rand(shape, generator=generator) for n in range(self.arrays)}
            for part in parts
        }


LOADS = (
    Load("1000 small leaves", 334, 256, 9),
    Load("100 MB", 48, 100 * MIB // 4 // 3 // 48, 7),
    Load("1 GB", 96, 1024 * MIB // 4 // 3 // 96, 3),
)


class Places:
    """Names of new files, and their removal."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._numbers = folder, itertools.count(1)

    def new(self) -> Path:
        """A name that was never used."""
        return self.folder / f"saved{next(self._numbers)}"

    def settle(self) -> None:
        """Remove all that was saved and let the disk come to rest."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()


@contextlib.contextmanager
def places(name: str) -> Iterator[tuple[Places, Store]]:
    """A folder for one comparison, and a store in it that is not swept with the rest."""
    folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-"))
    try:
        (folder / "files").mkdir()
        yield Places(folder / "files"), Store(folder / "store", name)
    finally:
        shutil.rmtree(folder)


def sweep(files: Places, store: Store) -> None:
    """Remove what was saved, ours as well."""
    for path in store.folder.iterdir():
        shutil.rmtree(path)
    files.settle()


def saving(bench: Bench, load: Load, state: State) -> None:
    """Each saver in turns, to the point where it returns; with the bytes on disk."""
    sizes: dict[str, int] = {}
    with places("saving") as (files, store):

        def case(name: str, save: Callable[[State, Path], Any]) -> Case:
            def whole() -> Any:
                path, watch = files.new(), Stopwatch()
                save(state, path)
                span = watch.span(1)
                written = (each for root in (files.folder, store.folder) for each in root.rglob("*") if each.is_file())
                sizes[name] = sum(each.stat().st_size for each in written)
                sweep(files, store)
                return span

            return attempt(lambda: Whole(whole))

        cases = {
            TORCH: case(TORCH, savers.torch_save),
            SYNCED: case(SYNCED, functools.partial(savers.torch_save, durable=True)),
            SAFE: case(SAFE, savers.safe_save),
            DCP: case(DCP, savers.dcp_save),
            LIGHTNING: attempt(lambda: case(LIGHTNING, savers.lightning_save(state))),
            OURS: case(OURS, functools.partial(savers.our_save, store)),
        }
        rounds = min(load.rounds, bench.rounds)
        timing = bench.compare(f"Saving {load.name}", cases, base=TORCH, rounds=rounds)
    rows = [[name, round(size / MIB, 2)] for name, size in sizes.items()]
    bench.table(f"On disk: {load.name}", ["saver", "MiB"], rows)
    limits = {
        "1000 small leaves": {DCP: 0.1, SYNCED: 0.8, TORCH: None},
        "1 GB": {TORCH: 0.5, SYNCED: None, DCP: 0.7},
    }
    for base, limit in limits.get(load.name, {TORCH: None, DCP: None}).items():
        bench.target_ratio(f"{load.name}, saved durably: ours / {base}", timing, OURS, base, at_most=limit)


def shares(bench: Bench, load: Load, state: State) -> None:
    """Our save beside its parts, each alone."""
    rounds = min(load.rounds, bench.rounds)
    memory = [leaf.view(-1).view(torch.uint8).numpy().data for leaves in state.values() for leaf in leaves.values()]
    size, watched, spent = sum(map(len, memory)), disk.Timed(), list[float]()
    with places("shares") as (files, store):

        def case(save: Callable[[Path], Any]) -> Case:
            def whole() -> Any:
                path, watch = files.new(), Stopwatch()
                save(path)
                span = watch.span(1)
                sweep(files, store)
                return span

            return Whole(whole)

        def ours(system: FileSystem) -> Case:
            other = Store(store.root, "shares", files=system)

            def save(path: Path) -> None:
                watched.syncing = 0.0
                savers.our_save(other, state, path)
                spent.extend([watched.syncing] if system is watched else [])

            return case(save)

        cases = {
            DISK: case(lambda path: disk.disk_alone(path, size)),
            "to copy and to sum": ours(disk.Nowhere()),
            OURS: ours(watched),
            "ours, through the page cache": ours(disk.ThroughCache()),
            "the page cache alone, not durable": case(lambda path: disk.cache_alone(path, memory)),
        }
        timing = bench.compare(f"Where the time of a durable save of {load.name} goes", cases, base=DISK, rounds=rounds)
    bench.target_ratio(f"{load.name}, saved durably: ours / the disk alone", timing, OURS, DISK)
    speed, syncing = size / timing.median(DISK) / 1000, 1000 * statistics.median(spent)
    bench.note(
        f"Alone, this disk takes {speed:.2f} GB/s, written directly and by as many threads as we use: no durable save "
        "is quicker. Ours copies, sums and writes block by block in several threads: the first two rows overlap. "
        f"{syncing:.1f} ms of it are syncs. `{TORCH}` returns before its bytes are on the disk."
    )


def loading(bench: Bench, load: Load, state: State) -> None:
    """Each loader in turns, from the page cache into tensors."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    with places("loading") as (files, store):
        paths = {name: files.new() for name in (TORCH, SAFE, DCP, OURS)}
        savers.torch_save(state, paths[TORCH])
        savers.safe_save(state, paths[SAFE])
        savers.dcp_save(state, paths[DCP])
        savers.our_save(store, state, paths[OURS])
        (entry,) = store.entries()
        blank = {
            part: {name: torch.empty_like(leaf) for name, leaf in leaves.items()} for part, leaves in state.items()
        }
        cases: dict[str, Case] = {
            TORCH: lambda: torch.load(paths[TORCH], weights_only=True),
            MAPPED: lambda: load_file(paths[SAFE]),
            CLONED: lambda: {name: leaf.clone() for name, leaf in load_file(paths[SAFE]).items()},
            DCP: attempt(lambda: lambda: dcp.load(blank, checkpoint_id=paths[DCP], no_dist=True)),
            "ours, only verified": lambda: store.at(entry.path),
            OURS: lambda: store.load(entry, state),
        }
        rounds = min(load.rounds, bench.rounds)
        timing = bench.compare(f"Loading {load.name}", cases, base=CLONED, rounds=rounds)
    what = f"{load.name}, loaded: ours, verified / safetensors, unverified, into memory"
    bench.target_ratio(what, timing, OURS, CLONED, at_most=2.0)
    bench.note(
        f"`{MAPPED}` is what `safetensors.torch.load_file` returns: tensors whose bytes are still in the file, and are "
        "read, a page at a time, when they are used. Nothing is loaded, so no load is compared with it; all others "
        "end with tensors in memory of their own."
    )


def stalls(bench: Bench, load: Load, state: State) -> None:
    """What a loop of steps on one core notices of a save."""
    weight = torch.rand(768, 768)
    rounds = 2 if bench.quick else min(load.rounds, bench.rounds)
    with places("stalls") as (files, store):
        begins: dict[str, Callable[[State, Path], Wait]] = {
            TORCH: savers.at_once(savers.torch_save),
            DCP: savers.at_once(savers.dcp_save),
            DCP_ASYNC: savers.dcp_async,
            OURS: savers.at_once(functools.partial(savers.our_save, store)),
            WRITER: savers.our_writer(store),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in begins}
        # What the steps lose is a small difference of long times: it takes more rounds to be seen.
        turns = [(turn, list(begins) if turn < rounds else [DCP_ASYNC, WRITER]) for turn in range(-1, 3 * rounds)]
        for turn, names in turns:
            for name in names:
                begin = begins[name]
                figures = one_stall(lambda: torch.mm(weight, weight), lambda: begin(state, files.new()))  # noqa: B023
                sweep(files, store)
                found[name] += [figures] if turn >= 0 else []
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    head = ["saver", "stall ms", "stall and slower steps ms", "until durable or written ms"]
    bench.table(
        f"A training loop while {load.name} is saved",
        head,
        [[name, *(round(1000 * each, 2) for each in row)] for name, row in medians.items()],
    )
    ours = medians[WRITER]
    if load.name == "1 GB":
        bench.target("1 GB, stall: ours / torch.save", ours[0] / medians[TORCH][0], at_most=0.01)
        bench.target("1 GB, stall: ours / DCP async_save", ours[0] / medians[DCP_ASYNC][0], at_most=0.02)
        bench.target(
            "1 GB, stall and slower steps: ours / DCP async_save", ours[1] / medians[DCP_ASYNC][1], at_most=0.5
        )


def one_stall(step: Callable[[], Any], begin: Callable[[], Wait]) -> tuple[float, float, float]:
    """Seconds until ``begin`` returned; by how much it made the loop longer; and until the save was over."""
    before = timed(step, 50)
    done, steps, start = threading.Event(), 0, time.perf_counter()
    wait = begin()
    stall = time.perf_counter() - start

    def until_done() -> None:
        wait()
        done.set()

    waiter = threading.Thread(target=until_done)
    waiter.start()
    while not done.is_set():
        step()
        steps += 1
    total = time.perf_counter() - start
    waiter.join()
    # The speed of a shared machine drifts within the seconds that a save takes.
    return stall, total - steps * (before.wall + timed(step, 50).wall) / 100, total


def measure(bench: Bench, name: str) -> None:
    """All questions for one state."""
    (load,) = (each for each in LOADS if each.name == name)
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    state = load.state(quick=bench.quick)
    saving(bench, load, state)
    if load.name == "1 GB":
        shares(bench, load, state)
    loading(bench, load, state)
    stalls(bench, load, state)


def main() -> None:
    """Each state in a process of its own; ``--part`` names one."""
    bench = Bench("checkpoint", __doc__)
    names = [LOADS[0].name] if bench.quick else [load.name for load in LOADS]
    bench.in_parts(names, functools.partial(measure, bench))
    bench.finish()


if __name__ == "__main__":
    main()
