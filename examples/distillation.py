"""A mean teacher: a network that learns from 40 labels and from the average of its own past.

    python examples/distillation.py --root runs/distillation      # kill it, run the line again: same bits

Of 1500 real digits only 40 have a label. The teacher is the exponential moving average of the student's weights; on
all images the student is drawn towards what the teacher says of another, noisy view of them (Tarvainen and Valpola
2017, https://arxiv.org/abs/1703.01780). The teacher is ``state.averages``, a part of the state like any other, and
the step is written by hand because its loss looks there. Printed are the accuracies on held out images of a student
trained on the labels alone, of the student and of its teacher, and the digest of the final state.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn.testing import Job

LABELS, UNKNOWN, RAMP = 40, -1, 100


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(),
        nn.Linear(256, 10),
    )  # fmt: skip


train_x, train_y, test_x, test_y = digits()
model, params, buffers = hf.functional(network)
optimizer, average = hf.optim.adamw(2e-3), hf.ema(0.97, warmup=True)


def noisy(images: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Another view of the images; the same one for the same key."""
    return images + 0.2 * hf.random.normal(key, images.shape)


def loss_fn(params, buffers, batch, key, teacher, consistency):
    """The loss on the images with a label, and the distance to the teacher on all."""
    x, y = batch
    logits, _ = model(params, buffers, noisy(x, hf.random.fold_in(key, "student")))
    with torch.no_grad():
        target = model.eval(teacher, buffers, noisy(x, hf.random.fold_in(key, "teacher")))[0].softmax(1)
    known = F.cross_entropy(logits, y, ignore_index=UNKNOWN, reduction="sum") / (y != UNKNOWN).sum().clamp(min=1)
    apart = F.mse_loss(logits.softmax(1), target)
    return known + consistency * apart, hf.Aux(weight=len(y), metrics={"known": known, "apart": apart})


def make_step(consistency: float):
    def step(state: hf.TrainState, batch) -> hf.TrainState:
        trust = consistency * min(1.0, state.counters.iteration / RAMP)  # a young teacher knows nothing
        loss = functools.partial(loss_fn, teacher=state.averages, consistency=trust)
        mean = hf.microsteps(hf.value_and_grad(loss, has_aux=True), state, batch)
        params, opt_state = optimizer.update(mean.grads, state.opt_state, state.params)
        averages = average.update(state.averages, params, optimizer.count(opt_state))
        metrics = {"loss": mean.loss, **mean.metrics}
        return state.replace(params=params, opt_state=opt_state, averages=averages, metrics=metrics)

    return hf.guard_finite(step)


def four_to_one(key: torch.Tensor, epoch: int, n: int) -> list[int]:
    """An epoch: all images without a label in a new order, and after each four one of the few that have one."""
    unknown = LABELS + hf.random.permutation(key, n - LABELS)
    known = hf.random.permutation(hf.random.fold_in(key, "known"), (n - LABELS) // 4) % LABELS
    return torch.cat([unknown.reshape(-1, 4), known[:, None]], dim=1).flatten().tolist()


def job(epochs: int = 15, consistency: float = 20.0, root: str | None = None) -> Job:
    """All that `hf.run` needs; also what ``python -m helios_fn.testing distillation:job`` checks."""
    data = TensorDataset(train_x, train_y.where(torch.arange(len(train_y)) < LABELS, UNKNOWN))
    order = hf.data.CustomOrder(four_to_one, samples=(len(train_y) - LABELS) // 4 * 5)
    cfg = hf.RunConfig(unit="epoch", total=epochs, checkpoint_every=1 if root else None, root=root, name="distillation")
    state = hf.init_state(params, optimizer, buffers=buffers, average=average)
    return Job(make_step(consistency), state, hf.Loader(data, 75, order=order), cfg)


def accuracy(params) -> float:
    """On the images that no network here was trained on."""
    return float((model.eval(params, buffers, test_x)[0].argmax(1) == test_y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/distillation", help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    alone = job(options.epochs, consistency=0.0)  # the same, but nobody listens to the teacher
    alone = dataclasses.replace(alone, cfg=dataclasses.replace(alone.cfg, progress=False))
    taught = job(options.epochs, root=options.root)
    without, state = (hf.run(work.step, work.state, work.loader, work.cfg).state for work in (alone, taught))
    print(f"accuracy with {LABELS} labels alone {accuracy(without.params):.3f}")
    print(f"accuracy of the student {accuracy(state.params):.3f}, of its teacher {accuracy(state.averages):.3f}")
    print(hf.tree.digest(state))


if __name__ == "__main__":
    main()
