"""Training in which one rank comes to harm. A module of its own, which launched processes can import."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

import helios_fn as hf
from helios_fn.driver import agreement

from ..jobs import Case, build

CASE = Case(
    samples=14,
    batch_size=3,
    total=9,
    micro_batches=4,
    dropout=True,
    batch_norm=True,
    schedule=True,
    checkpoint_every=hf.Every(3, "iteration"),
)
AT = 5
"""The harm comes after the step of this iteration."""
TIMEOUT = 2.0


class Trouble:
    """An observer: what happens to rank ``who`` after iteration `AT`."""

    def __init__(self, how: str, who: int) -> None:
        self._how, self._who = how, who

    def on_iteration(self, state) -> None:
        if state.counters.iteration == AT and int(os.environ["RANK"]) == self._who:
            self.strike()

    def strike(self) -> None:
        if self._how == "raise":
            raise ValueError("boom")
        if self._how == "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))
            bytearray(1 << 32)
        if self._how == "os._exit":
            os._exit(7)
        if self._how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self._how))


def train(root, how="nothing", who=0, **changes) -> tuple[str, str, int]:
    """The digest of the final state, the reason, and the iterations; ``how`` "break" leaves `hf.iterate` early."""
    agreement.PAUSE = 0.0
    torch.set_num_threads(1)
    job = build(CASE)
    cfg = dataclasses.replace(job.cfg, root=root, collective_timeout=TIMEOUT, **changes)
    states = hf.iterate(job.step, job.state, job.new_loader(), cfg, observers=[Trouble(how, who)])
    while True:
        try:
            state = next(states)
        except StopIteration as end:
            result = end.value
            return hf.tree.digest(result.state), result.reason.name, result.state.counters.iteration
        if how == "break" and state.counters.iteration == AT and int(os.environ["RANK"]) == who:
            states.close()
            return "left", "", AT


def main() -> None:
    """``python -m tests.world.troubled ROOT HOW WHO``, for processes that others start. Trouble comes once."""
    root, how, who = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if how != "wait" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        how = "nothing"
    if how == "wait":
        print(*wait_for_the_cut(root), flush=True)
    else:
        print(*train(root, how, who), flush=True)


def wait_for_the_cut(root) -> tuple[str, str, int]:
    """Train and say so in a file; after iteration `AT` wait until another file says that the line is cut."""

    class Waiting:
        def on_iteration(self, state) -> None:
            if state.counters.iteration == AT:
                Path(root, f"waiting-{os.environ['RANK']}").touch()
                while not Path(root, "cut").exists():
                    time.sleep(0.02)

    job = build(CASE)
    cfg = dataclasses.replace(job.cfg, root=root, collective_timeout=TIMEOUT)
    torch.set_num_threads(1)
    result = hf.run(job.step, job.state, job.new_loader(), cfg, observers=[Waiting()])
    return hf.tree.digest(result.state), result.reason.name, result.state.counters.iteration


if __name__ == "__main__":
    main()
