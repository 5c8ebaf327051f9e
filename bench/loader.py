"""How many samples per second does the loader give, against torch's plain DataLoader?

An iteration is one sample, and a turn one epoch, shuffled, of live workers. Nothing is done with the batches, so
that reading is all there is to measure; CPU time is that of the main process, which trains in its place.

    python -m bench.loader
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .harness import Bench, Case, Span, Stopwatch, Whole

PLAIN, OURS = "plain DataLoader", "ours"


class Images(Dataset):
    """Compressed images in memory, decoded to tensors of shape (3, size, size)."""

    def __init__(self, count: int, size: int, kind: str) -> None:
        from PIL import Image

        self._open = Image.open
        generator, self.files = np.random.default_rng(0), []
        for _ in range(count):
            coarse = generator.integers(0, 256, (12, 12, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, kind)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = np.array(self._open(io.BytesIO(self.files[index])).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255, index


class Rows(Dataset):
    """Tensors in memory behind a class of one's own, of which a loader knows nothing."""

    def __init__(self, *columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple([column[index] for column in self.columns])


class Numbers(Dataset):
    """Samples that cost nothing."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Work(NamedTuple):
    """A dataset, its size in an ordinary and in a quick run, and the samples of a batch."""

    name: str
    make: Callable[[int], Any]
    samples: int
    quick: int
    batch_size: int


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of the size of MNIST's."""
    return torch.randn(count, 1, 28, 28), torch.arange(count)


WORKS = [
    Work("JPEG images, 160 x 160", lambda n: Images(n, 160, "JPEG"), 256, 8, 32),
    Work("PNG images, 32 x 32", lambda n: Images(n, 32, "PNG"), 512, 16, 64),
    Work("TensorDataset, 28 x 28", lambda n: TensorDataset(*digits(n)), 8192, 128, 64),
    Work("tensors in a class of one's own, 28 x 28", lambda n: Rows(*digits(n)), 8192, 128, 64),
]


def keep_identity(sample: Any, rng: np.random.Generator) -> Any:
    """A transform that takes its generator and leaves the sample as it is."""
    return sample


def epochs(read: Callable[[int], Any], samples: int) -> Whole:
    """Reads one epoch after the other: ``read(epoch)`` gives the batches."""
    turn = 0

    def epoch() -> Span:
        nonlocal turn
        turn += 1
        watch = Stopwatch()
        for _ in read(turn):
            pass
        return watch.span(samples)

    return Whole(epoch)


def plain(dataset: Any, batch_size: int, workers: int) -> Case:
    """torch's loader; its workers live on from epoch to epoch, as ours do."""
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return epochs(lambda _: loader, len(dataset))


def ours(dataset: Any, batch_size: int, **options: Any) -> tuple[Whole, Callable[[], None]]:
    """Our loader, and how to close it."""
    import helios_fn as hf

    loader, key = hf.Loader(dataset, batch_size, **options), hf.random.key(0)
    return epochs(lambda epoch: loader.epoch(key, epoch), len(dataset)), loader.close


def throughput(bench: Bench, work: Work) -> None:
    """Samples per second without and with workers."""
    target = f"samples per second, {work.name}, %d workers: ours / plain DataLoader"
    try:
        dataset = work.make(work.quick if bench.quick else work.samples)
    except ImportError as error:
        bench.target(target % 0, None, at_least=1.0, note=str(error))
        return
    for workers, least in ((0, 1.0), (2, 0.95)):
        case, close = ours(dataset, work.batch_size, workers=workers, seed_globals=False)
        cases = {PLAIN: plain(dataset, work.batch_size, workers), OURS: case}
        title = f"{work.name}, batches of {work.batch_size}, {workers} workers"
        # Two equal readers differ by up to a tenth from one epoch to the next here, so without workers, where hardly
        # anything else is measured, there are more rounds.
        rounds = bench.rounds if workers else 3 * bench.rounds
        timing = bench.compare(f"{title} (per sample)", cases, base=PLAIN, rounds=rounds)
        speeds = [[name, round(1e6 / timing.median(name))] for name in cases]
        bench.table(f"{title} (samples per second)", ["peer", "samples/s"], speeds)
        # Of times, which for samples per second is the other way round. Without workers all work is done in this
        # process, and its CPU time tells more than two digits of the clock on the wall would.
        figure = timing.ratio(PLAIN, OURS, "wall" if workers else "cpu")
        held = bench.target(target % workers, figure and round(figure, 2), at_least=least)
        if held.verdict == "missed" and not workers:
            bench.explain(title, case.function, calls=2, per=len(dataset))
        close()


def randomness(bench: Bench) -> None:
    """What it costs to give each sample randomness of its own: samples that cost nothing, no workers."""
    dataset = Numbers(128 if bench.quick else 16384)
    options: dict[str, dict[str, Any]] = {
        "no randomness": {"seed_globals": False},
        "seed_globals": {"seed_globals": True},
        "transform(sample, rng)": {"seed_globals": False, "transform": keep_identity},
        "both": {"seed_globals": True, "transform": keep_identity},
    }
    cases = {PLAIN: plain(dataset, 64, 0)} | {name: ours(dataset, 64, **given)[0] for name, given in options.items()}
    timing = bench.compare("samples that cost nothing (per sample)", cases, base=PLAIN)
    for name in [*options][1:]:
        bench.target(f"{name}, CPU per sample", timing.excess(name, "no randomness", "cpu"), unit=" us")


def delivery(bench: Bench) -> None:
    """What a delivery costs beside selecting its rows: the order, the cursor, the feed."""
    import helios_fn as hf

    columns, index = (torch.randn(4096, 16), torch.arange(4096)), torch.arange(64)
    feed = hf.Loader(TensorDataset(*columns), 64).open(hf.types.Cursor(), key=hf.random.key(0), share=hf.types.Share())
    nothing = iter(DataLoader(range(10**9), None, sampler=range(10**9)))  # type: ignore[arg-type]
    cases: dict[str, Case] = {
        "rows of a batch, selected": lambda: [column.index_select(0, index) for column in columns],
        "our feed": lambda: next(feed),
        "plain DataLoader of nothing, no batches": lambda: next(nothing),
    }
    timing = bench.compare("one delivery of 64 small rows", cases, base="our feed")
    own = timing.excess("our feed", "rows of a batch, selected")
    bench.target("a delivery from memory, above selecting its rows", own, unit=" us")
    bench.explain("deliveries from memory", lambda: next(feed), calls=3000)


def main() -> None:
    """Measure everything."""
    bench = Bench("loader", __doc__)
    for work in WORKS:
        throughput(bench, work)
    randomness(bench)
    delivery(bench)
    bench.finish()


if __name__ == "__main__":
    main()
