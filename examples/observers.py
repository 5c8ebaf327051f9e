"""What may be added to a run without touching it: an observer, a sink, and conditions of your own.

    python examples/observers.py

Observers and sinks read what happens and change nothing: with or without them a run ends in the same bits. Conditions
(``should_stop``, ``improved``) do decide; being functions of the state alone, they decide the same after a resume.
The data are the measurements of scikit-learn's wines. Printed are the sizes of the weights and a curve of the
validation loss, why the run ended, and that the state is the same without any of it.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf


class WeightNorms(hf.Observer):
    """Prints the norm of each parameter after every ``every`` validations."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_validation(self, state: hf.TrainState) -> None:
        if state.validation.cycles % self.every == 0:
            norms = "  ".join(f"{name} {tensor.norm():.3f}" for name, tensor in state.params.items())
            print(f"epoch {state.cursor.epoch:2}: {norms}")


class Curve:
    """A sink that draws a metric when the run ends. What it holds is its mark, so a resumed run draws all of it."""

    name = "curve"

    def __init__(self, metric: str) -> None:
        self.metric, self.values = metric, []

    def open(self, info: hf.RunInfo, mark: list[float] | None) -> None:
        self.values = list(mark or [])  # whatever was written beyond the checkpoint will be written again

    def write(self, row: hf.Row) -> None:
        if row.kind == "validation":
            self.values.append(row.metrics[self.metric])

    def flush(self) -> list[float]:
        return self.values[:]

    def close(self) -> None:
        top = max(self.values, default=1.0) or 1.0
        print(f"validation {self.metric}: " + "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * v / top))] for v in self.values))


is_good_enough = hf.stopping.metric("validation/loss", at_most=0.1)
"""When to stop: any function of the state that returns a truth value, or a text, which becomes part of the result."""


def by_one_percent(best: float, new: float) -> bool:
    """What counts as an improvement for `EarlyStop`; the first ``best`` is infinite."""
    return new < 0.99 * best


x, y = (torch.tensor(part) for part in load_wine(return_X_y=True))
order = torch.randperm(178, generator=torch.Generator().manual_seed(0))
x, y = ((x - x.mean(0)) / x.std(0)).float()[order], y[order]
model, params, buffers = hf.functional(lambda: nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3)))


def loss_fn(params, buffers, batch, key):
    logits, _ = model(params, buffers, batch[0])
    loss = F.cross_entropy(logits, batch[1])
    accuracy = (logits.argmax(1) == batch[1]).float().mean()
    return loss, hf.Aux(weight=len(batch[1]), metrics={"accuracy": accuracy})


def evaluate(params, buffers, batch):
    loss, aux = loss_fn(params, buffers, batch, None)
    return aux._replace(metrics={**aux.metrics, "loss": loss})


def train(epochs: int, root: str | None = None, **additions) -> hf.Result:
    """A run of at most so many epochs, with more or less around it."""
    optimizer = hf.optim.sgd(0.1)
    validate = hf.Validator(evaluate, hf.Loader(TensorDataset(x[128:], y[128:]), 50, shuffle=False))
    cfg = hf.RunConfig(
        unit="epoch", total=epochs, validate_every=1, root=root, progress=False,
        early_stop=hf.EarlyStop("loss", cycles=5, improved=by_one_percent),
    )  # fmt: skip
    state = hf.init_state(params, optimizer, buffers=buffers)
    loader = hf.Loader(TensorDataset(x[:128], y[:128]), 16)
    step = hf.make_step(loss_fn, optimizer)
    return hf.run(step, state, loader, cfg, validate=validate, should_stop=is_good_enough, **additions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    seen = train(options.epochs, observers=[WeightNorms(every=5)], sinks=[Curve("loss")])
    unseen = train(options.epochs)
    print(f"{seen.reason.value}: {seen.message}" if seen.message else seen.reason.value)
    same = "the same" if hf.tree.equal(seen.state, unseen.state) else "ANOTHER"
    print(f"epochs {seen.state.cursor.epoch}; without observer and sink the final state is {same}")


if __name__ == "__main__":
    main()
