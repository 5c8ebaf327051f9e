"""Two lives of the demo's classifier; in one of them a bit of memory flips. Which iteration, which weight, which run?

    python examples/planted_bit.py

Trains both under ``runs/planted``, then asks the three commands that find out. They need no more than what a run leaves
behind (``fingerprint_every``), and a function that makes its job.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import torch
from classify import Shifted, network
from images import load
from torch.nn import functional as F

import helios_fn as hf
from helios_fn.cli import main as command
from helios_fn.testing import Job


def job() -> Job:
    """What the demo trains, for one epoch: the step, the first state, the data and the configuration."""
    torch.set_num_threads(1)
    x, y, _, _ = load("digits")
    model, params, buffers = hf.functional(lambda: network(x.shape[-1]))

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return F.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    optimizer, average = hf.optim.adamw(1e-2), hf.ema(0.95)
    return Job(
        hf.make_step(loss_fn, optimizer, average=average),
        hf.init_state(params, optimizer, buffers=buffers, average=average),
        hf.Loader(Shifted(x, y), batch_size=64),
        hf.RunConfig(unit="epoch", total=1, progress=False),
    )


def disturbed(step, iteration: int):
    """The step on a machine whose memory fails once: after an iteration, the last bit of one weight is another."""

    def disturbed_step(state, batch):
        new = step(state, batch)
        if state.counters.iteration == iteration - 1:
            weight = new.params["3.weight"].clone()
            weight.view(torch.int32)[4, 7, 1, 1] ^= 1
            new = new.replace(params={**new.params, "3.weight": weight})
        return new

    return disturbed_step


def train(root: Path, bad: int | None = None) -> None:
    made = job()
    cfg = dataclasses.replace(
        made.cfg,
        root=root,
        checkpoint_every=hf.Every(8, "iteration"),
        log_every=hf.Every(5, "iteration"),
        fingerprint_every=hf.Every(1, "iteration"),
    )
    step = made.step if bad is None else disturbed(made.step, bad)
    hf.run(step, made.state, made.loader, cfg, sinks=[hf.sinks.JsonLines()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/planted"))
    parser.add_argument("--iteration", type=int, default=13, help="where the bit flips, of 23")
    options = parser.parse_args()
    shutil.rmtree(options.root, ignore_errors=True)
    sound, broken = options.root / "sound", options.root / "broken"
    train(sound)
    train(broken, bad=options.iteration)
    for arguments in (
        ["compare", sound, broken],
        ["bisect", sound, broken, "--job", "planted_bit:job"],
        ["replay", broken, "--iteration", options.iteration, "--job", "planted_bit:job"],
    ):
        words = [str(argument) for argument in arguments]
        print(f"$ python -m helios_fn {' '.join(words)}")
        command(words)
        print()


if __name__ == "__main__":
    main()
