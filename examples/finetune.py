"""Fine-tuning: a network that knows the digits 0 to 4 learns all ten from five images of each.

    python examples/finetune.py

The first run leaves a checkpoint. `hf.restore` takes the body from it into a network with a new head, and accounts
for every tensor on both sides; `hf.freeze` takes the first layers out of training; `optim.groups` gives those that
remain rates of their own. Printed are the report of the restoration, the accuracy on held out images beside that of
the same network trained from scratch on the same few images, and the digest of the final state.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf


class Network(nn.Module):
    """A body for images, and a head for so many classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


x, y = (torch.cat(parts) for parts in (digits()[::2], digits()[1::2]))


def only(which: range, some: slice) -> TensorDataset:
    """Some images of each of these digits."""
    chosen = torch.cat([torch.nonzero(y == digit).flatten()[some] for digit in which])
    return TensorDataset(x[chosen], y[chosen])


def train(model, state: hf.TrainState, optimizer: hf.optim.Optimizer, data: TensorDataset, **config) -> hf.TrainState:
    """Some epochs on ``data``."""

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    cfg = hf.RunConfig(unit="epoch", **config)
    return hf.run(hf.make_step(loss_fn, optimizer), state, hf.Loader(data, 25), cfg).state


def accuracy(model, state: hf.TrainState, data: TensorDataset) -> float:
    def evaluate(params, buffers, batch):
        logits, _ = model.eval(params, buffers, batch[0])
        return hf.Aux(metrics={"accuracy": (logits.argmax(1) == batch[1]).float().mean()}, weight=len(batch[1]))

    return hf.test(evaluate, state, hf.Loader(data, 500, shuffle=False))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/finetune", help="the folder of both runs")
    parser.add_argument("--epochs", type=int, default=8, help="of the first run; the second has five times as many")
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    body, few, held_out = only(range(5), slice(100)), only(range(10), slice(5)), only(range(10), slice(100, None))

    model, params, buffers = hf.functional(lambda: Network(5))
    optimizer = hf.optim.adamw(2e-3)
    start, root = hf.init_state(params, optimizer, buffers=buffers), Path(options.root)
    train(model, start, optimizer, body, total=options.epochs, root=root / "body", name="body")

    # Another network, of another seed; all but its head comes from the first one's newest checkpoint.
    model, params, buffers = hf.functional(lambda: Network(10), seed=1)
    pretrained, report = hf.restore(root / "body", {"params": params}, only=["params.*", "!params.head.*"])
    print(report)
    tuned, params, buffers = hf.freeze(model, pretrained["params"], buffers, ["body.0.*", "body.2.*"])
    by_layer = hf.optim.groups({"body.*": hf.optim.adamw(1e-4)}, default=hf.optim.adamw(2e-3))
    epochs = 5 * options.epochs
    start = hf.init_state(params, by_layer, buffers=buffers)
    state = train(tuned, start, by_layer, few, total=epochs, root=root / "head", name="head")

    model, params, buffers = hf.functional(lambda: Network(10), seed=1)
    start = hf.init_state(params, optimizer, buffers=buffers)
    scratch = train(model, start, optimizer, few, total=epochs, progress=False)
    print(f"trained: {', '.join(state.params)}")
    print(f"frozen:  {', '.join(state.buffers)}")
    print(f"accuracy with {len(few)} images, from scratch {accuracy(model, scratch, held_out):.3f}")
    print(f"accuracy with {len(few)} images, fine-tuned {accuracy(tuned, state, held_out):.3f}")
    print(hf.tree.digest(state))


if __name__ == "__main__":
    main()
