"""Learning to learn: weights from which one gradient step on ten points finds a sine wave.

    python examples/maml.py

Each task is a sine wave of its own amplitude and phase. `unroll` trains a few steps on a task's ten points and is
differentiable in the weights it starts from, so the error after that training is an ordinary loss, and its minimum
over many tasks an ordinary run (MAML: Finn et al. 2017, https://arxiv.org/abs/1703.03400). Nothing in the library
knows of it. Printed are the errors on tasks never met before, before and after training on ten points of each: once
from random weights, once from those that were learned.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import helios_fn as hf
from helios_fn.testing import Job

POINTS, INNER_STEPS = 10, 1


def task(index: int, rng) -> dict[str, torch.Tensor]:
    """Ten points of a wave to train on and ten to be judged by; `rng` is a NumPy generator of this sample alone."""
    x = torch.from_numpy(rng.uniform(-5, 5, (2 * POINTS, 1)).astype("float32"))
    y = rng.uniform(0.1, 5.0) * torch.sin(x + rng.uniform(0, torch.pi))
    return {"x": x[:POINTS], "y": y[:POINTS], "new_x": x[POINTS:], "new_y": y[POINTS:]}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


model, params, _ = hf.functional(network)


def fit(params, buffers, batch, key):
    """The loss of a single task."""
    return F.mse_loss(model(params, {}, batch[0])[0], batch[1])


inner = hf.optim.sgd(0.02)
inner_step = hf.make_step(fit, inner)


def trained(params, x, y, steps: int):
    """The weights after so many steps on one task, as a differentiable function of those before."""
    state = hf.init_state(params, inner)
    return hf.unroll(inner_step, state, [(x, y)] * steps).params


def errors(params, batch, steps: int) -> torch.Tensor:
    """The error of each task of a batch on its new points, after training on the others."""

    def error(x, y, new_x, new_y):
        return fit(trained(params, x, y, steps), {}, (new_x, new_y), None)

    return torch.func.vmap(error)(batch["x"], batch["y"], batch["new_x"], batch["new_y"])


def loss_fn(params, buffers, batch, key):
    return errors(params, batch, INNER_STEPS).mean(), hf.Aux(weight=len(batch["x"]))


def job(iterations: int = 300, root: str | None = None) -> Job:
    """All that `hf.run` needs; also what ``python -m helios_fn.testing maml:job`` checks."""
    optimizer = hf.optim.adam(3e-3)
    cfg = hf.RunConfig(unit="iteration", total=iterations, root=root, checkpoint_every=100 if root else None)
    tasks = hf.Loader(range(10_000), 25, transform=task)
    return Job(hf.make_step(loss_fn, optimizer), hf.init_state(params, optimizer), tasks, cfg)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the folder of the run; none keeps nothing")
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    work = job(options.iterations, options.root)
    state = hf.run(work.step, work.state, work.loader, work.cfg).state
    unseen = next(iter(hf.Loader(range(500), 500, transform=task).epoch(hf.random.key(1))))
    print(f"{'error on unseen tasks':24}{'at once':>10}{'1 step':>10}{'5 steps':>10}")
    for name, weights in (("from random weights", params), ("from learned weights", state.params)):
        found = [float(errors(weights, unseen, steps).mean()) for steps in (0, 1, 5)]
        print(f"{name:24}" + "".join(f"{value:10.3f}" for value in found))
    print(hf.tree.digest(state))


if __name__ == "__main__":
    main()
