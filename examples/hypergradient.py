"""Learning rate and weight decay tuned by their gradients, through 30 steps of training on real digits.

    python examples/hypergradient.py

`unroll` makes training a differentiable function of the state it starts from. Its hyperparameters are leaves of that
state, so the loss on held out images after training has a gradient with respect to them; an ordinary optimiser follows
it. Twelve such trainings, each from the same weights, are the whole search.
"""

from __future__ import annotations

import argparse

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import unroll

STEPS = 30


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="how often the hyperparameters are changed")
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    train_x, train_y, test_x, test_y = digits()
    train_x, held_x, train_y, held_y = train_x[:300], train_x[300:], train_y[:300], train_y[300:]
    model, params, buffers = hf.functional(network)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    optimizer = hf.optim.tunable(hf.optim.adamw, lr=1e-3, weight_decay=0.3)
    step, start = hf.make_step(loss_fn, optimizer), hf.init_state(params, optimizer, buffers=buffers)
    loader = hf.Loader(TensorDataset(train_x, train_y), batch_size=50, seed_globals=False)
    epochs = -(-STEPS // loader.batches_per_epoch)
    batches = [batch for epoch in range(epochs) for batch in loader.epoch(start.key, epoch)][:STEPS]

    def trained(logs):
        """The state after training with hyperparameters given by their logarithms, which keeps them positive."""
        hyper = {**start.opt_state.hyper, **{name: value.exp() for name, value in logs.items()}}
        begin = start.replace(opt_state=start.opt_state._replace(hyper=hyper))
        return unroll(step, begin, batches, remat="sqrt")

    def held_out_loss(logs):
        state = trained(logs)
        return F.cross_entropy(model(state.params, buffers, held_x)[0], held_y), state

    logs = {name: start.opt_state.hyper[name].log() for name in ("lr", "weight_decay")}
    outer = hf.optim.adam(hf.schedules.cosine(0.6, steps=options.rounds))
    memory, losses = outer.init(logs), []
    for _ in range(options.rounds):
        (loss, state), grads = hf.value_and_grad(held_out_loss, has_aux=True)(logs)
        losses.append(float(loss))
        told = "  ".join(f"{name} {value.exp():.2e} (gradient {grads[name]:+.3f})" for name, value in logs.items())
        print(f"held out loss {loss:.4f}  {told}", flush=True)
        logs, memory = outer.update(grads, memory, logs)

    accuracy = (model(state.params, buffers, test_x)[0].argmax(1) == test_y).float().mean()
    print(f"held out loss fell from {losses[0]:.4f} to {losses[-1]:.4f}; accuracy on the test images {accuracy:.3f}")


if __name__ == "__main__":
    main()
