"""What the ranks of a pool do in the tests of evaluation. A module of its own, which they can import."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

import helios_fn as hf

from .runs import attentive

STATE = hf.init_state({"w": torch.arange(6.0).reshape(2, 3)})


def evaluate(params, buffers, batch):
    """A confusion, a mean whose bits depend on the order of summation, and batches of weight 0."""
    x, y = batch
    scores = x @ params["w"] + torch.rand(3)
    far = hf.metrics.mean()(x.double() / 3 * 10.0 ** (5 * (y[:1] - 1)))
    metrics = {"of": hf.metrics.confusion(3)(scores, y), "far": far, "loss": scores.mean()}
    return hf.Aux(metrics=metrics, weight=len(y) if int(y[0]) else 0)


def predictions(params, buffers, batch):
    return {"scores": batch[0] @ params["w"] + torch.rand(3), "class": (batch[1].to(torch.int16),)}


def loader(samples, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(samples, 2, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    return hf.Loader(TensorDataset(x, y), batch_size, shuffle=False)


def found(samples, batch_size, seed):
    """What an evaluation and a prediction give on this rank, and the numbers of its own batches."""
    hf.distributed.connect(20.0)
    data = loader(samples, batch_size, seed)
    try:
        metrics = dict(hf.test(evaluate, STATE, data))
    except hf.RunFailed as error:
        metrics = str(error.__cause__)
    own = [number for number, _ in hf.predict_batches(predictions, STATE, data)]
    return metrics, hf.predict(predictions, STATE, data), own


def tried(samples):
    """Validation tried out and limited, and a run of everything in a temporary folder."""
    attentive()

    def loss_fn(params, buffers, batch, key):
        return ((batch[0] @ params["w"]) ** 2).mean(), hf.Aux(weight=len(batch[0]))

    cfg = hf.RunConfig(
        "epoch", 9, micro_batches=4, validate_every=1, sanity_batches=2, progress=False, collective_timeout=20.0
    )
    optimizer = hf.optim.sgd(0.01)
    state = hf.init_state(STATE.params, optimizer)
    step, data = hf.make_step(loss_fn, optimizer), loader(samples, 2, 3)
    held_out = hf.Validator(lambda p, b, batch: hf.Aux(metrics={"m": p["w"].sum()}), loader(5, 1, 4))
    result = hf.dev_run(step, state, data, cfg, validate=held_out)
    rates = hf.find_learning_rate(
        lambda lr: hf.make_step(loss_fn, hf.optim.sgd(lr)), state, data, iterations=9, lo=1e-3, hi=1e6, micro_batches=2
    )
    assert rates.diverged
    return result.state, rates.losses
