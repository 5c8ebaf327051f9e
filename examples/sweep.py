"""A sweep as one run: eight learning rates, three seeds each, trained together on real digits.

    python examples/sweep.py
    python examples/sweep.py --compile --root runs/sweep     # kill it, run the line again: same bits

Learning rates are tensors of the state (`tunable`), so the 24 members differ in nothing but values, and one mapped
step trains them all. A member whose loss is no longer finite is frozen; one that has learned enough stops.
"""

from __future__ import annotations

import argparse

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import all_stopped, ensemble, evaluate_members, stack

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
SEEDS = [0, 1, 2]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument(
        "--compile", action="store_true", help="the mapped step as one graph: slower to start, faster to go"
    )
    parser.add_argument("--root", help="the folder of the run; none keeps nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    train_x, train_y, test_x, test_y = digits()
    model, _, _ = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    def evaluate(params, buffers, batch):
        x, y = batch
        logits, _ = model.eval(params, buffers, x)
        return hf.Aux(metrics={"accuracy": (logits.argmax(1) == y).float().mean()}, weight=len(y))

    def make_state(rate, seed):
        optimizer = hf.optim.tunable(hf.optim.adamw, lr=rate)
        _, params, buffers = hf.functional(network, seed=seed)
        return hf.init_state(params, optimizer, buffers=buffers, seed=seed)

    members = [(rate, seed) for rate in RATES for seed in SEEDS]
    optimizer = hf.optim.tunable(hf.optim.adamw, lr=1e-3)  # the value of a member is in its state
    step = ensemble(
        hf.make_step(loss_fn, optimizer), stop=lambda state: state.metrics["loss"] < 1e-4, non_finite="freeze"
    )
    result = hf.run(
        hf.compile(step) if options.compile else step,
        stack([make_state(rate, seed) for rate, seed in members]),
        hf.Loader(TensorDataset(train_x, train_y), batch_size=64, seed_globals=False),
        hf.RunConfig(
            unit="epoch", total=options.epochs, log_every=hf.Every(20, "iteration"), progress=False,
            root=options.root, checkpoint_every=1 if options.root else None,
        ),
        should_stop=all_stopped,
    )  # fmt: skip

    found = hf.test(evaluate_members(evaluate), result.state, hf.Loader(TensorDataset(test_x, test_y), batch_size=297))
    print(f"{'learning rate':>13}  accuracy of seeds {SEEDS}      mean")
    means = {}
    for at, rate in enumerate(RATES):
        each = [found[f"accuracy/{at * len(SEEDS) + seed}"] for seed in range(len(SEEDS))]
        means[rate] = sum(each) / len(each)
        print(f"{rate:13g}  {'   '.join(f'{accuracy:.3f}' for accuracy in each):25}  {means[rate]:.3f}")
    best = max(means, key=means.__getitem__)
    print(f"best learning rate {best:g}: accuracy {means[best]:.3f}")


if __name__ == "__main__":
    main()
