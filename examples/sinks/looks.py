"""What TensorBoard can show beside curves: weights, gradients and images of a classifier as it learns.

python examples/sinks/looks.py
tensorboard --logdir runs/looks/logs
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import helios_fn as hf

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
model, params, buffers = hf.functional(lambda: Sequential(Linear(64, 32), ReLU(), Linear(32, 10)))
hparams = {"lr": 3e-3, "clip": 1.0, "optimizer": "adamw"}


def loss_fn(params, buffers, batch, key):
    logits, buffers = model(params, buffers, batch[0])
    return cross_entropy(logits, batch[1]), hf.Aux(buffers, len(batch[1]))


def worst(state: hf.TrainState) -> torch.Tensor:
    """The sixteen digits with the greatest loss, as images of shape (16, 1, 8, 8)."""
    logits, _ = model.eval(state.params, state.buffers, x)
    hardest = cross_entropy(logits, y, reduction="none").topk(16).indices
    return x[hardest].reshape(-1, 1, 8, 8)


optimizer = hf.optim.chain(
    hf.optim.keep_gradients(),  # as they are before clipping; where none are to be seen, leave it out
    hf.optim.clip_by_global_norm(hparams["clip"]),
    hf.optim.adamw(hparams["lr"]),
)
board = hf.sinks.TensorBoard(
    hparams=hparams,
    texts={"data": "1797 digits of 8 x 8 pixels, from scikit-learn"},
    histograms={"weights": lambda state: state.params, "gradients": lambda state: state.opt_state[0].grads},
    images={"worst": worst},
    every=hf.Every(1, "epoch"),
)
torch.set_num_threads(1)  # so small a model gains nothing from more
cfg = hf.RunConfig(unit="epoch", total=2, checkpoint_every=1, root="runs/looks")
state, step = hf.init_state(params, optimizer, buffers=buffers), hf.make_step(loss_fn, optimizer)
hf.run(step, state, hf.Loader(TensorDataset(x, y), 128), cfg, sinks=[board])
