"""An image classifier on real images: augmentation, dropout, batch statistics, schedule, averaged weights.

    python examples/classify.py --root runs/classify            # kill it, run the line again: same bits
    python examples/classify.py --root runs/classify --workers 2
    python examples/classify.py --root runs/fashion --data fashion

The augmentation draws from torch's global generator, as ordinary datasets do; the loader seeds it per
sample, so an image looks the same whichever worker reads it and wherever the run was resumed.
"""

from __future__ import annotations

import argparse
import json

import torch
from images import load
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import helios_fn as hf


class Shifted(Dataset):
    """Images moved by up to one pixel in each direction, with a little noise."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = F.pad(x, (1, 1, 1, 1)), y
        self.size = x.shape[-1]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        top, left = torch.randint(0, 3, (2,)).tolist()
        image = self.x[index, :, top : top + self.size, left : left + self.size]
        return image + 0.05 * torch.randn(image.shape), self.y[index]


def network(size: int) -> nn.Module:
    """A small convolutional net for square images with one channel and ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * (size // 2) ** 2, 10),
    )  # fmt: skip


class Report(hf.Observer):
    """Prints each iteration, for whoever watches (and kills) this process."""

    def on_iteration(self, state: hf.TrainState) -> None:
        print(f"iteration {state.counters.iteration}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the folder of the run")
    parser.add_argument("--data", default="digits", choices=["digits", "fashion"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="print each iteration and, last, a JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes bits; here every start uses the same
    train_x, train_y, test_x, test_y = load(options.data)

    model, params, buffers = hf.functional(lambda: network(train_x.shape[-1]))

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    def evaluate(params, buffers, batch):
        x, y = batch
        logits, _ = model.eval(params, buffers, x)
        accuracy = (logits.argmax(1) == y).float().mean()
        return hf.Aux(metrics={"loss": F.cross_entropy(logits, y), "accuracy": accuracy}, weight=len(y))

    steps = options.epochs * -(-len(train_y) // 64)
    optimizer = hf.optim.adamw(hf.schedules.warmup_cosine(1e-2, warmup_steps=steps // 10, total_steps=steps))
    average = hf.ema(0.95)
    test_set = hf.Loader(TensorDataset(test_x, test_y), batch_size=256, shuffle=False)
    cfg = hf.RunConfig(
        unit="epoch", total=options.epochs, validate_every=1, checkpoint_every=hf.Every(10, "iteration"),
        log_every=hf.Every(5, "iteration"), root=options.root, name=options.data, progress=not options.report,
    )  # fmt: skip
    result = hf.run(
        hf.make_step(loss_fn, optimizer, average=average),
        hf.init_state(params, optimizer, buffers=buffers, average=average),
        hf.Loader(Shifted(train_x, train_y), batch_size=64, workers=options.workers),
        cfg,
        validate=hf.Validator(evaluate, test_set),
        sinks=[hf.sinks.JsonLines(), hf.sinks.TextLog(), hf.sinks.TensorBoard()],
        observers=[Report()] if options.report else [],
    )
    accuracy = hf.test(evaluate, result.state, test_set)["accuracy"]
    print(json.dumps({"accuracy": accuracy, "digest": hf.tree.digest(result.state)}), flush=True)


if __name__ == "__main__":
    main()
