"""One script for any number of processes; whoever starts it, and with how many, it prints the same digest.

    python examples/data_parallel.py                               # alone
    python examples/data_parallel.py --processes 2                 # started by helios_fn's launch
    torchrun --nproc-per-node 2 examples/data_parallel.py          # started by torchrun

Nothing in `train` knows of the others: ``hf.run`` finds them by itself. With ``--root`` a run that was stopped with one
number of processes goes on with another.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf


def network() -> nn.Module:
    """A classifier with batch statistics and dropout, which most ways to train in parallel would change."""
    return nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))


def train(root: str | None, epochs: int) -> tuple[str, float]:
    """The digest of the final state, and its accuracy on data it was not trained on."""
    x = torch.rand(1200, 2, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x.prod(1) > 0.25).long())
    train_set, test_set = torch.utils.data.Subset(data, range(1000)), torch.utils.data.Subset(data, range(1000, 1200))
    model, params, buffers = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    def evaluate(params, buffers, batch):
        x, y = batch
        logits, _ = model.eval(params, buffers, x)
        return hf.Aux(metrics={"accuracy": (logits.argmax(1) == y).float().mean()}, weight=len(y))

    optimizer = hf.optim.adamw(1e-2)
    cfg = hf.RunConfig(
        unit="epoch", total=epochs, root=root, progress=False,
        micro_batches=8,  # of 32 samples, in each iteration of all processes together: this fixes the mathematics
        reduction="tree",  # their gradients are summed in one order, however many processes there are
    )  # fmt: skip
    result = hf.run(
        hf.make_step(loss_fn, optimizer),
        hf.init_state(params, optimizer, buffers=buffers),
        hf.Loader(train_set, batch_size=32, shuffle=True),
        cfg,
    )
    accuracy = hf.test(evaluate, result.state, hf.Loader(test_set, batch_size=64, shuffle=False))["accuracy"]
    return hf.tree.digest(result.state), accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the folder of the run, for a run that can be resumed")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--processes", type=int, help="how many to start (default: one; under torchrun: its own)")
    options = parser.parse_args()
    # In a process that torchrun has started, the function is called right here.
    digest, accuracy = hf.launch(train, options.root, options.epochs, processes=options.processes)[0]
    if hf.distributed.current().is_main:
        print(f"accuracy {accuracy:.3f}")
        print(digest)


if __name__ == "__main__":
    main()
