"""Loops of your own: over `hf.iterate`, where a run branches by your condition, and below it, by step and feed alone.

    python examples/custom_loop.py

States never change, so two ways to go on can start from the same one. Here the training branches every 40 iterations,
with the learning rate as it is and with a third of it; whichever has the smaller loss on held out patients is kept.
The data are scikit-learn's breast cancer measurements. `three_loops` then shows that `hf.run`, `hf.iterate` and ten
lines by hand are the same training, bit for bit. Printed are one line for each branching and the three digests.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf

x, y = (torch.tensor(part, dtype=torch.float32) for part in load_breast_cancer(return_X_y=True))
x = (x - x[:400].mean(0)) / x[:400].std(0)
train, held_out = TensorDataset(x[:400], y[:400]), TensorDataset(x[400:], y[400:])

model, params, buffers = hf.functional(lambda: nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1)))


def loss_fn(params, buffers, batch, key):
    logits, _ = model(params, buffers, batch[0])
    return F.binary_cross_entropy_with_logits(logits[:, 0], batch[1]), hf.Aux(weight=len(batch[1]))


def evaluate(params, buffers, batch):
    logits = model(params, buffers, batch[0])[0][:, 0]
    right = ((logits > 0) == (batch[1] > 0.5)).float().mean()
    loss = F.binary_cross_entropy_with_logits(logits, batch[1])
    return hf.Aux(metrics={"loss": loss, "accuracy": right}, weight=len(batch[1]))


optimizer = hf.optim.tunable(hf.optim.sgd, lr=3.0)  # the learning rate is a tensor of the state
step = hf.make_step(loss_fn, optimizer)
loader = hf.Loader(train, batch_size=40)
start = hf.init_state(params, optimizer, buffers=buffers)
validate = hf.Validator(evaluate, hf.Loader(held_out, batch_size=169, shuffle=False))


def quiet(total: int) -> hf.RunConfig:
    return hf.RunConfig(unit="iteration", total=total, progress=False)


def slower(state: hf.TrainState, factor: float) -> hf.TrainState:
    """The same state with another learning rate."""
    return hf.override(state, {"opt_state.hyper.lr": state.opt_state.hyper["lr"] * factor})


def grow(state: hf.TrainState, rounds: int, length: int = 40) -> hf.TrainState:
    """Go on in two ways from each state, and keep the better one."""
    for _ in range(rounds):
        total, found = state.counters.iteration + length, []
        for factor in (1.0, 1 / 3):
            for new in hf.iterate(step, slower(state, factor), loader, quiet(total)):
                if float(new.metrics["loss"]) > 2.0:  # any condition of your own: here, a branch not worth finishing
                    break
            found.append((validate(new)["loss"], factor, new))
        _, factor, best = min(found, key=lambda branch: branch[0])
        losses = " or ".join(f"{other:.4f}" for other, _, _ in found)
        print(f"after {total:3} iterations: held out loss {losses}, so the learning rate is multiplied by {factor:.2g}")
        state = best
    return state


def by_hand(state: hf.TrainState, total: int) -> hf.TrainState:
    """What is left when the driver is left out: read the cursor's batches, step, and advance the counters."""
    feed = loader.open(state.cursor, key=state.key)
    while state.counters.iteration < total:
        delivery = next(feed)
        iteration, micro_step = state.counters
        state = step(state.replace(metrics={}), delivery.items[0])
        state = state.replace(cursor=delivery.cursor, counters=hf.Counters(iteration + 1, micro_step + delivery.count))
    feed.close()
    return state


def three_loops(total: int) -> dict[str, str]:
    """The digest of the final state by each of three ways."""
    by_run = hf.run(step, start, loader, quiet(total)).state
    *_, by_iterate = hf.iterate(step, start, loader, quiet(total))
    states = {"hf.run": by_run, "hf.iterate": by_iterate, "by hand": by_hand(start, total)}
    return {name: hf.tree.digest(state) for name, state in states.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often the training branches")
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    state = grow(start, options.rounds)
    print(f"accuracy on patients not trained on {validate(state)['accuracy']:.3f}")
    for name, digest in three_loops(25).items():
        print(f"{name:11}{digest}")


if __name__ == "__main__":
    main()
