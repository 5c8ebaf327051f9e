"""A curriculum in three phases on real digits: coarse images first, then the real ones, last spoilt ones.

    python examples/curriculum.py                      # kill it, run the line again: same bits, also across a change
    python examples/curriculum.py --root runs/again    # from the start

`hf.Phases` is a list of sources and, between each two, a predicate of the state. The first phase is left by a count
(three epochs), the second by what has been learned (accuracy on held out images); the third stays. Which phase a run
is in is part of its state, so nothing has to be remembered to resume it. Printed are the changes of phase, the
accuracy on held out images and on spoilt ones, and the digest of the final state.
"""

from __future__ import annotations

import argparse

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn.testing import Job

PHASES = ("4x4 pixels", "8x8 pixels", "8x8 pixels, a part of each image spoilt")


def network() -> nn.Module:
    """Convolutions and a mean over the image, so that it takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 64, 10),
    )  # fmt: skip


def spoilt(sample, rng):
    """An image with a 3x3 square of noise somewhere; `rng` is a NumPy generator of this sample and epoch alone."""
    image, label = sample[0].clone(), sample[1]
    top, left = rng.integers(0, 6, size=2)
    image[:, top : top + 3, left : left + 3] = torch.from_numpy(rng.random((3, 3), dtype="float32"))
    return image, label


def three_epochs_are_over(state: hf.TrainState) -> bool:
    return state.cursor.epoch >= 3


class Narrator(hf.Observer):
    """Tells when another phase has begun."""

    phase = -1

    def on_iteration(self, state: hf.TrainState) -> None:
        if state.cursor.phase != self.phase:
            self.phase = state.cursor.phase
            print(f"from iteration {state.counters.iteration}, phase {self.phase}: {PHASES[self.phase]}", flush=True)


train_x, train_y, test_x, test_y = digits()
model, params, buffers = hf.functional(network)


def loss_fn(params, buffers, batch, key):
    x, y = batch
    logits, buffers = model(params, buffers, x)
    return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))


def evaluate(params, buffers, batch):
    x, y = batch
    logits, _ = model.eval(params, buffers, x)
    return hf.Aux(metrics={"accuracy": (logits.argmax(1) == y).float().mean()}, weight=len(y))


def job(epochs: int = 10, samples: int = 1500, enough: float = 0.93, root: str | None = None) -> Job:
    """All that `hf.run` needs; also what ``python -m helios_fn.testing curriculum:job`` checks."""
    real = TensorDataset(train_x[:samples], train_y[:samples])
    coarse = TensorDataset(F.avg_pool2d(train_x[:samples], 2), train_y[:samples])
    # Reads what validation found last, so here the cadence of validation is part of the training.
    real_images_are_learned = hf.stopping.metric("validation/accuracy", at_least=enough)
    curriculum = hf.Phases(
        [hf.Loader(coarse, 64), hf.Loader(real, 64), hf.Loader(real, 64, transform=spoilt)],
        advance=[three_epochs_are_over, real_images_are_learned],
    )
    optimizer = hf.optim.adamw(2e-3)
    cfg = hf.RunConfig(
        unit="epoch", total=epochs, validate_every=1, checkpoint_every=1 if root else None, root=root, name="curriculum"
    )
    state = hf.init_state(params, optimizer, buffers=buffers)
    held_out = hf.Validator(evaluate, hf.Loader(TensorDataset(test_x, test_y), 99, shuffle=False))
    return Job(hf.make_step(loss_fn, optimizer), state, curriculum, cfg, {"validate": held_out})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/curriculum", help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    work = job(options.epochs, root=options.root)
    result = hf.run(work.step, work.state, work.loader, work.cfg, observers=[Narrator()], **work.keywords)
    test_set = hf.Loader(TensorDataset(test_x, test_y), 99, shuffle=False)
    for name, loader in (("real", test_set), ("spoilt", test_set.replace(transform=spoilt))):
        accuracy = hf.test(evaluate, result.state, loader)["accuracy"]
        print(f"accuracy on {name} images {accuracy:.3f}")
    print(hf.tree.digest(result.state))


if __name__ == "__main__":
    main()
