import torch
from sklearn.datasets import load_digits
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import helios_fn as hf

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
train, valid = TensorDataset(x[:1500].float() / 16, y[:1500]), TensorDataset(x[1500:].float() / 16, y[1500:])
model, params, buffers = hf.functional(lambda: Sequential(Linear(64, 128), ReLU(), Linear(128, 10)))


def loss_fn(params, buffers, batch, key, call=model):
    logits, buffers = call(params, buffers, batch[0])
    metrics = {"accuracy": (logits.argmax(1) == batch[1]).float().mean()}
    return cross_entropy(logits, batch[1]), hf.Aux(buffers, len(batch[1]), metrics)


optimizer = hf.optim.adamw(3e-3)
validate = hf.Validator(lambda p, b, batch: loss_fn(p, b, batch, None, model.eval)[1], hf.Loader(valid, 256))
cfg = hf.RunConfig(unit="epoch", total=3, validate_every=1, checkpoint_every=1, root="runs/newcomer")
state, step = hf.init_state(params, optimizer, buffers=buffers), hf.make_step(loss_fn, optimizer)
hf.run(step, state, hf.Loader(train, 64), cfg, validate=validate, sinks=[hf.sinks.TensorBoard()])
