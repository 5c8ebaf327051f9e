"""What does the driver cost per iteration, above a bare loop around the same step?

The step does nothing, the batches come from memory, and the state has ten leaves. Frameworks are given the same
batches and an equally idle step, and log as their users do: the loss every ten iterations. Read the table as
microseconds per iteration on top of the bare loop; preparations (making a trainer, opening files) are not in it. "Full"
adds a log in text (ours: JSON lines). Ours always has its guards on: for the purity of the step, for values that are
not finite, for signals.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from . import loops, ours, standin
from .harness import Bench, Case, Span, Whole, attempt
from .loops import Feed, Job, Run

SETTINGS = {
    "logging off": {},
    "bar": {"bar": True},
    "bar, TensorBoard every 10": {"bar": True, "tensorboard": True},
    "full": {"bar": True, "tensorboard": True, "text": True},
}
# So many iterations that a turn lasts long enough, by how much each costs.
LENGTHS = {
    "bare loop": 20_000,
    "helios_fn": 10_000,
    "Lightning": 500,
    "Ignite": 1000,
    "Accelerate": 2500,
    "Helios": 1000,
}


class Terminal(io.TextIOBase):
    """A terminal that nobody looks at: bars are drawn as they would be on a screen."""

    def __init__(self) -> None:
        self._null = open(os.devnull, "w")  # noqa: SIM115  # as long as this object lives

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return self._null.write(text)

    def flush(self) -> None:
        self._null.flush()


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Standard output and error go to a `Terminal`."""
    with contextlib.redirect_stderr(Terminal()), contextlib.redirect_stdout(Terminal()):
        yield


def sample(run: Run, total: int, options: dict[str, bool]) -> Span:
    """One run of a job with an idle step, in a folder of its own."""
    feed = Feed([(torch.zeros(1), torch.zeros(1))], total, warm=total // 10)
    with tempfile.TemporaryDirectory() as folder, unseen():
        run(Job(feed, Path(folder), **options))
    return feed.span


def state_of_ten_leaves() -> object:
    """Ten tensors; the driver's guard looks at leaves in turn."""
    import helios_fn as hf

    return hf.init_state({f"leaf{index}": torch.zeros(4) for index in range(10)})


def our_run(job: Job) -> None:
    """``hf.run`` around the idle step."""
    ours.train(job, ours.noop_step, state_of_ten_leaves())


def our_bare_loop(job: Job) -> None:
    """The loop by hand around the same step."""
    ours.bare_noop(job, state_of_ten_leaves())


def compare(bench: Bench, setting: str) -> None:
    """All drivers with one setting."""
    substituted = standin.torchvision()
    if substituted:
        bench.note(substituted)
    options = SETTINGS[setting]

    def case(name: str, run: Run, options: dict[str, bool]) -> Case:
        total = 40 if bench.quick else LENGTHS[name.partition(",")[0]]
        return attempt(lambda: Whole(functools.partial(sample, run, total, options)))

    cases = {
        "bare loop": case("bare loop", loops.bare, {}),
        "bare loop, our step": case("bare loop", our_bare_loop, {}),
        "helios_fn": case("helios_fn", our_run, options),
        **{name: case(name, run, options) for name, run in loops.FRAMEWORKS.items()},
    }
    timing = bench.compare(f"Whole iterations: {setting}", cases, base="bare loop")
    above = {name: timing.excess(name, "bare loop") for name in loops.FRAMEWORKS}
    above = {"helios_fn": timing.excess("helios_fn", "bare loop, our step"), **above}
    rows = [[name, "-" if us is None else us] for name, us in above.items()]
    bench.table(f"us per iteration above the bare loop: {setting}", ["driver", "us"], rows)
    mine, names = above["helios_fn"], {"Ignite": 1 / 10, "Lightning": 1 / 100}
    if setting == "full":
        bench.target("driver per iteration above a bare loop, all features on", mine, at_most=3.0, unit=" us")
    if setting == "bar, TensorBoard every 10":
        for name, limit in names.items():
            theirs = above[name]
            ratio = mine / theirs if mine is not None and theirs else None
            bench.target(f"driver, bar and TensorBoard every 10: ours / {name}", ratio, at_most=limit)
    if any(target.verdict == "missed" for target in bench.targets):
        bench.explain(f"driver, {setting}", lambda: sample(our_run, 2000, options), per=2000)


def main() -> None:
    """Each setting in a process of its own."""
    bench = Bench("driver", __doc__)
    bench.in_parts(list(SETTINGS), lambda setting: compare(bench, setting))
    bench.finish()


if __name__ == "__main__":
    main()
