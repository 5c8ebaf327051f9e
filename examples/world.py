"""The number of processes changes no bit: five lives of each of two models, on 1, 2, 4 and on changing numbers of them.

An iteration has a fixed number of micro-batches, whoever computes them, and their gradients are summed in the order of
one tree. So a run may begin with four processes, go on with two and end with one; or lose a process by SIGKILL and go
on with fewer. All end in the same state, which is compared by digest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import time

import classify
import transformer
from images import digits
from torch.nn import functional as F

import helios_fn as hf

RUNS = {  # name: (processes, the part of the run after which they stop or are killed) of each launch
    "1 process": [(1, None)],
    "2 processes": [(2, None)],
    "4 processes": [(4, None)],
    "4, then 2, then 1": [(4, "stop at 1/3"), (2, "stop at 2/3"), (1, None)],
    "4, SIGKILL, then 2": [(4, "kill at 1/2"), (2, None)],
}


@dataclasses.dataclass
class Kill(hf.Observer):
    """Kills the process that it is in."""

    iteration: int

    def on_iteration(self, state: hf.TrainState) -> None:
        if state.counters.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def classifier(x, y):
    """Network, loss, data in micro-batches of 56: 27 in an epoch, the last with 44 images, so 7 iterations of 4."""
    model, params, buffers = hf.functional(lambda: classify.network(x.shape[-1]))

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return F.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    return loss_fn, params, buffers, hf.Loader(classify.Shifted(x, y), batch_size=56, shuffle=True)


def gpt(text):
    """The same of a transformer: 26 micro-batches in an epoch, the last with 4 windows, so 4 iterations of 8."""
    windows = text.unfold(0, transformer.CONTEXT + 1, transformer.CONTEXT)[:204]
    model, params, buffers = hf.functional(transformer.Transformer)

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        return loss, hf.Aux(buffers=buffers, weight=batch[:, 1:].numel())

    return loss_fn, params, buffers, hf.Loader(windows, batch_size=8, shuffle=True)


MODELS = {  # what is trained, the micro-batches in an iteration, and the data, which is read once for all
    "digits": (classifier, 4, lambda: digits()[:2]),
    "gpt": (gpt, 8, lambda: (transformer.corpus(files=2)[:20_000],)),
}


def train(name: str, data: tuple, root: str, epochs: int, until: str | None) -> tuple[str, float]:
    """What each process does; returns the digest of the last state and its loss."""
    (loss_fn, params, buffers, loader), micro_batches = MODELS[name][0](*data), MODELS[name][1]
    total = epochs * -(-loader.batches_per_epoch // micro_batches)
    what, _, part = (until or "").partition(" at ")
    end = 1 + total * int(part[0]) // int(part[2]) if until else total
    optimizer, average = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(3e-3)), hf.ema(0.95)
    cfg = hf.RunConfig(
        unit="epoch", total=epochs, micro_batches=micro_batches, root=root, name=name, progress=False,
        checkpoint_every=hf.Every(4, "iteration"), collective_timeout=60.0,
    )  # fmt: skip
    result = hf.run(
        hf.make_step(loss_fn, optimizer, average=average),
        hf.init_state(params, optimizer, buffers=buffers, average=average),
        loader,
        cfg,
        should_stop=(lambda state: state.counters.iteration >= end) if what == "stop" else None,
        observers=[Kill(end)] if what == "kill" and hf.distributed.connect().rank == 1 else [],
    )
    return hf.tree.digest(result.state), float(result.state.metrics["loss"])


def life(name: str, data: tuple, run: str, epochs: int) -> tuple[str, float]:
    """One run from its start to its end, in as many launches as it takes."""
    for processes, until in RUNS[run]:
        try:
            found = hf.launch(train, name, data, f"runs/world/{name}/{run}", epochs, until, processes=processes)
        except hf.LaunchFailed as error:
            if not until or not until.startswith("kill"):
                raise
            print(f"    {name}, {run}: {str(error).splitlines()[0]}", flush=True)
    assert len(set(found)) == 1  # the processes of one run agree
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    shutil.rmtree("runs/world", ignore_errors=True)
    begin, equal = time.monotonic(), True
    for name in options.models:
        data = MODELS[name][2]()
        found = {run: life(name, data, run, options.epochs) for run in RUNS}
        print(f"{name:<20}{'last loss':<12}digest of the final state")
        for run, (digest, loss) in found.items():
            print(f"{run:<20}{loss:<12.4f}{digest}")
        equal = equal and len(set(found.values())) == 1
        print(f"the five final states are {'equal, bit for bit' if equal else 'NOT EQUAL'}\n", flush=True)
    print(f"{time.monotonic() - begin:.0f} seconds")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
